package feed

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"
)

// formatter formats entries.
type formatter struct {
	log     string
	version string
	cef     bool
}

// event is what every entry says of itself.
type event struct {
	Type string    `json:"type"`
	Time time.Time `json:"time"`
}

// eventOf returns what an entry says of itself. It is empty for an entry that says nothing.
func eventOf(entry []byte) (e event) {
	_ = json.Unmarshal(entry, &e)
	return e
}

// line returns an entry as one line, without its end.
func (f formatter) line(r record) []byte {
	if f.cef {
		return f.cefLine(r)
	}
	log, _ := json.Marshal(f.log)
	return fmt.Appendf(nil, `{"log":%s,"index":%d,"entry":%s}`, log, r.index, r.entry)
}

// Escapes of CEF version 0: of fields of its header, and of values of its extension.
var (
	cefHeader    = strings.NewReplacer(`\`, `\\`, `|`, `\|`, "\n", " ", "\r", " ")
	cefExtension = strings.NewReplacer(`\`, `\\`, `=`, `\=`, "\n", `\n`, "\r", `\r`)
)

// cefLine returns an entry in the Common Event Format.
func (f formatter) cefLine(r record) []byte {
	e := eventOf(r.entry)
	return fmt.Appendf(nil, "CEF:0|notation-hsm|hsm-broker|%s|%s|%s|%d|rt=%d externalId=%d cs1Label=log cs1=%s msg=%s",
		cefHeader.Replace(f.version), cefHeader.Replace(e.Type), cefHeader.Replace(e.Type), cefSeverity, e.Time.UnixMilli(),
		r.index, cefExtension.Replace(f.log), cefExtension.Replace(string(r.entry)))
}

// cefSeverity is the severity of all entries, of 10: rules of the SIEM decide by the type.
const cefSeverity = 3
