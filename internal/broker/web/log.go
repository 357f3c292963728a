package web

import (
	"net/http"
	"strconv"
	"strings"

	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
)

// logView is the state of the log.
type logView struct {
	Origin     string
	Size       int64
	Checkpoint string // a signed note; "" before the first
	URL        string // where the log is served
}

// log shows the newest checkpoint of the log, and how to verify it.
func (w *Web) log(r *http.Request, _ *who) (*view, error) {
	note, err := w.options.Checkpoint(r.Context())
	if err != nil {
		return nil, err
	}
	v := &logView{Checkpoint: string(note), URL: w.options.PublicURL + brokerapi.LogPath}
	if lines := strings.SplitN(v.Checkpoint, "\n", 3); len(lines) == 3 { // C2SP tlog-checkpoint
		v.Origin = lines[0]
		v.Size, _ = strconv.ParseInt(lines[1], 10, 64)
	}
	return &view{Template: "log", Title: "Log", Section: "log", Data: v}, nil
}
