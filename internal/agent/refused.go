package agent

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/ownership"
	"github.com/notation-hsm/notation-hsm/internal/pin"
	"github.com/notation-hsm/notation-hsm/internal/state"
)

// Refusals keeps which tokens have refused a PIN in a folder, one file for each token: an agent that is started again
// must not try that PIN again. The file is written before a login and removed after one that was not refused, so that a
// killed agent leaves it, too. A person who is asked for the PIN decides anew: prompt leaves no file.
type Refusals struct {
	dir     string
	command string // that clears one; "" is that of the agent

	mu     sync.Mutex
	last   *brokerapi.RefusedPIN // by the last login
	stored string                // its file; "" for a PIN that a person typed
}

const clearCommand = "hsm-broker agent clear"

// clearHint returns what to do about a refused PIN.
func (r *Refusals) clearHint() string {
	return "check the PIN with the vendor's tool, put the right one into its source, then run '" +
		cmp.Or(r.command, clearCommand) + "'"
}

// askedHint is clearHint for a PIN that a person typed.
const askedHint = "run 'hsm-broker agent lock', use the key again, and type the right PIN when the agent asks"

// unfinished is the reason of a file until its login has ended.
const unfinished = "the agent ended during a login"

// NewRefusals returns the refusals in the user's state directory: notation-hsm/agent in XDG_STATE_HOME, or else in
// .local/state in HOME.
func NewRefusals() (*Refusals, error) {
	dir := os.Getenv("XDG_STATE_HOME")
	if dir == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return nil, failure.New(failure.Invalid, "cannot find the user's state directory: %w", err).
				WithHint("set HOME or XDG_STATE_HOME to an absolute path")
		}
		dir = filepath.Join(home, ".local", "state")
	}
	if !filepath.IsAbs(dir) {
		return nil, failure.New(failure.Invalid, "the user's state directory %s is not an absolute path", dir).
			WithHint("set HOME or XDG_STATE_HOME to an absolute path")
	}
	return &Refusals{dir: filepath.Join(dir, "notation-hsm", "agent")}, nil
}

// RefusalsIn returns the refusals in a folder of a broker's, and which command clears one.
func RefusalsIn(dir, command string) *Refusals { return &Refusals{dir: dir, command: command} }

// Guard is a pin.Guard. It waits while another agent logs in to the token, and fails with Denied if the token has
// refused a PIN.
func (r *Refusals) Guard(ctx context.Context, l pin.Login) (func(*failure.Error), error) {
	record := &brokerapi.RefusedPIN{Module: l.Module, Token: l.Token, Name: l.Name, Reason: unfinished}
	if l.Source == pin.Prompt {
		return func(refusal *failure.Error) { r.note("", record, refusal) }, nil
	}
	if err := r.checkDir(); err != nil {
		return nil, err
	}
	path := r.path(l)
	file, err := waitForRecord(ctx, path)
	if err != nil {
		if ctx.Err() != nil {
			return nil, failure.New(failure.Timeout, "another agent logs in to token %q", l.Name).WithHint("run it again")
		}
		return nil, err
	}
	before, err := readRecord(path)
	if err == nil && before != nil {
		r.mu.Lock()
		r.last, r.stored = before, path
		r.mu.Unlock()
		f := failure.New(failure.Denied, "the PIN of %q is not tried again: %s (%s)", l.Name, before.Reason,
			before.Time.Local().Format(time.DateTime)).WithHint(r.clearHint())
		f.CKR, err = before.CKR, f
	}
	if err == nil {
		record.Time = time.Now().UTC()
		err = writeRecord(path, record)
	}
	if err != nil {
		file.Close()
		return nil, err
	}
	return func(refusal *failure.Error) {
		defer file.Close()
		r.note(path, record, refusal)
		if refusal == nil {
			err = os.Remove(path)
		} else {
			err = writeRecord(path, record)
		}
		if err != nil { // the file of before the login is still there
			slog.Error("cannot keep how a login ended", "error", err)
		}
	}, nil
}

// note completes a record after a login, and keeps it if the PIN must not be tried again.
func (r *Refusals) note(path string, record *brokerapi.RefusedPIN, refusal *failure.Error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last, r.stored = nil, path
	if refusal != nil {
		record.Reason, record.CKR, record.Time = refusal.What, refusal.CKR, time.Now().UTC()
		r.last = record
	}
}

// Last returns the PIN that the last login was refused for, or nil if it may be tried.
func (r *Refusals) Last() *brokerapi.RefusedPIN {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.last != nil && r.stored != "" {
		if _, err := os.Lstat(r.stored); errors.Is(err, fs.ErrNotExist) { // it was cleared
			r.last = nil
		}
	}
	return r.last
}

// nextStep sets the hint of a failure that the refused PIN has caused, and returns other errors as they are.
func (r *Refusals) nextStep(err error) error {
	last := r.Last()
	if err == nil || last == nil || last.CKR == "" || failure.From(err).CKR != last.CKR {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	f := *failure.From(err)
	f.Hint = r.clearHint()
	if r.stored == "" {
		f.Hint = askedHint
	}
	return &f
}

// locked notes that the next login asks a person for the PIN again. The files stay.
func (r *Refusals) locked() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.stored == "" {
		r.last = nil
	}
}

// List returns all refused PINs.
func (r *Refusals) List() (all []brokerapi.RefusedPIN, err error) {
	files, err := filepath.Glob(filepath.Join(r.dir, "*.json"))
	if err != nil {
		return nil, err
	}
	for _, file := range files {
		record, err := readRecord(file)
		if err != nil {
			return nil, err
		}
		if record != nil {
			all = append(all, *record)
		}
	}
	return all, nil
}

// Clear lets the PIN of a token be tried again. It fails with Conflict while an agent logs in to the token.
func (r *Refusals) Clear(refused brokerapi.RefusedPIN) error {
	if err := r.checkDir(); err != nil {
		return err
	}
	path := r.pathOf(refused)
	file, err := lockRecord(path)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return failure.New(failure.Conflict, "an agent logs in to token %q at this moment", refused.Name).
			WithHint("run it again")
	}
	if err != nil {
		return err
	}
	defer file.Close()
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return failure.New(failure.FileKind(err), "cannot clear the PIN of %q: %w", refused.Name, err).
			WithHint("check the folder's permissions")
	}
	return nil
}

// checkDir creates the folder, and verifies that this user and root alone can change it.
func (r *Refusals) checkDir() error {
	if err := os.MkdirAll(r.dir, 0o700); err != nil {
		return failure.New(failure.FileKind(err), "cannot keep which PINs were refused: %w", err).
			WithHint("set XDG_STATE_HOME to a folder that this user can write to")
	}
	if err := ownership.Check(r.dir, os.Geteuid()); err != nil {
		f := failure.From(err)
		return failure.New(failure.Denied, "cannot keep which PINs were refused: %w", f).WithHint(f.Hint)
	}
	return nil
}

// path returns the file of a token: of one with a serial number, whatever the path of its module, which may have
// several.
func (r *Refusals) path(l pin.Login) string {
	module := l.Module
	if uri, err := config.ParseURI(l.Token); err == nil && uri.Serial != "" {
		module = ""
	}
	sum := sha256.Sum256([]byte(module + "\n" + l.Token))
	return filepath.Join(r.dir, hex.EncodeToString(sum[:16])+".json")
}

// waitForRecord is lockRecord that waits until ctx ends. It does not wait in the kernel, where a wait cannot be ended:
// a process that keeps the lock would cost this one a thread for each call that gives up.
func waitForRecord(ctx context.Context, path string) (*os.File, error) {
	for {
		file, err := lockRecord(path)
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return file, err
		}
		select {
		case <-time.After(lockPause):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// lockPause is how long waitForRecord waits between two tries. One call of a token waits at a time.
const lockPause = 20 * time.Millisecond

func (r *Refusals) pathOf(refused brokerapi.RefusedPIN) string {
	return r.path(pin.Login{Module: refused.Module, Token: refused.Token})
}

// Same reports whether two records are of one token.
func (r *Refusals) Same(a, b brokerapi.RefusedPIN) bool { return r.pathOf(a) == r.pathOf(b) }

// lockRecord opens the lock of a file and takes it. It fails with EWOULDBLOCK if another process has it.
func lockRecord(path string) (*os.File, error) {
	name := strings.TrimSuffix(path, ".json") + ".lock"
	file, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
	if err == nil {
		if err = unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == nil { //nolint:gosec // a descriptor fits
			return file, nil
		}
		file.Close()
	}
	return nil, failure.New(failure.FileKind(err), "cannot keep which PINs were refused: %w", err).
		WithHint("set XDG_STATE_HOME to a folder on a local file system that this user can write to")
}

// readRecord reads a file; nil if there is none. One that says nothing forbids the PIN, too.
func readRecord(path string) (*brokerapi.RefusedPIN, error) {
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var data []byte
	if err == nil {
		defer file.Close()
		data, err = io.ReadAll(io.LimitReader(file, 64<<10))
	}
	if err != nil {
		return nil, failure.New(failure.FileKind(err), "cannot read which PINs were refused: %w", err).
			WithHint("check the file's permissions")
	}
	record := &brokerapi.RefusedPIN{}
	if err := json.NewDecoder(bytes.NewReader(data)).Decode(record); err != nil {
		return nil, failure.New(failure.Denied, "cannot read which PIN was refused from %s: %w", path, err).
			WithHint("check the PIN with the vendor's tool, then remove this file")
	}
	return record, nil
}

func writeRecord(path string, record *brokerapi.RefusedPIN) error {
	data, err := json.Marshal(record)
	if err != nil {
		return err
	}
	return state.Write(path, append(data, '\n'), 0o600)
}
