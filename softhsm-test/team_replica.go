package softhsmtest

import (
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// Replica returns another replica of a broker whose store is on PostgreSQL, which does not run yet. Its number is above
// 0. It has the policy and the certificates of the first one, and an address, a socket and a copy of the checkpoint
// file of its own. Tokens for its callers name Public. listen is appended to this section of its config.
func (b *TeamBroker) Replica(t testing.TB, number int, listen string) *TeamBroker {
	t.Helper()
	r := *b
	r.Service, r.t, r.replica, r.suffix = nil, t, number, "-"+strconv.Itoa(number+1)
	r.Socket = filepath.Join(b.Dir, "socket"+r.suffix)
	_, port, _ := net.SplitHostPort(freeAddress(t))
	r.URL = "https://" + net.JoinHostPort(r.settings.Host, port)
	Write(t, r.Checkpoint(), Read(t, b.Checkpoint()))
	r.settings.Listen = listen
	r.writeConfig()
	return &r
}

// UseStore has the config of a broker name a database of PostgreSQL, which replicas share.
func (b *TeamBroker) UseStore(url string) {
	b.t.Helper()
	b.settings.Store = url
	b.file("replicas.key", strings.Repeat("0123456789abcdef", 4))
	b.writeConfig()
}
