package softhsmtest

import (
	"path/filepath"
	"strings"
	"syscall"
)

// Kill ends the broker at once, as a power failure would, and waits until it has ended.
func (b *TeamBroker) Kill() {
	b.t.Helper()
	b.Signal(b.t, syscall.SIGKILL)
	<-b.Ended
}

// Restart stops the broker in order, and starts it again.
func (b *TeamBroker) Restart() {
	b.t.Helper()
	b.Stop()
	b.Start()
}

// Database returns the path of the broker's database.
func (b *TeamBroker) Database() string { return filepath.Join(b.Dir, "store", "broker.db") }

// Checkpoint returns the path of the checkpoint outside of the database.
func (b *TeamBroker) Checkpoint() string { return filepath.Join(b.Dir, "checkpoint"+b.suffix) }

// LogOrigin is the name of the log in its first epoch.
const LogOrigin = "broker.example.com/log"

// LogFlags are the flags of 'hsm-broker log' by which anyone verifies the log of the broker.
func (b *TeamBroker) LogFlags() []string {
	b.t.Helper()
	path := filepath.Join(b.Dir, "log.pem")
	b.file("log.pem", Run(b.t, Build(b.t, "notation-hsm"), "cert", "export", "--public", "--pin-source",
		"file:"+filepath.Join(b.Dir, "pin"), "--module-path", b.token.Module, b.LogKey))
	return []string{"--key", path, "--origin", LogOrigin, "--ca", b.CA}
}

// ExportLog verifies the log with 'hsm-broker log', copies it into a new folder, and returns the folder.
func (b *TeamBroker) ExportLog(flags []string) string {
	b.t.Helper()
	dir := filepath.Join(b.t.TempDir(), "log")
	Run(b.t, b.Program, append([]string{"log", "export", b.URL + "/v1/log", dir}, flags...)...)
	return dir
}

// Address returns the address that the broker listens on.
func (b *TeamBroker) Address() string {
	return strings.Replace(strings.TrimPrefix(b.URL, "https://"), "localhost:", "127.0.0.1:", 1)
}
