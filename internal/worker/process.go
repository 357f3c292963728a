package worker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
)

// A process is a running process of a module, as its parent sees it.
type process struct {
	module *module
	pid    int
	shared *lane    // the connection for all calls but those of the lanes
	all    []*lane  // that carry one call each
	pins   *os.File // the parent's end of the socket that carries PINs

	sendingPIN sync.Mutex // keeps PINs in the order of the frames that announce them

	mu      sync.Mutex
	lanes   []*lane // that carry none
	calls   map[uint64]*call
	last    uint64 // number given to a call
	timer   *time.Timer
	nextDue time.Time // when the timer runs watch; zero when it does not run
	answers int       // to calls that show that the module works
	reason  error     // why the process was ended, or has ended
	reaped  bool      // its number may be another's

	drops   atomic.Int32 // keys that it was told to forget
	alive   atomic.Bool
	greeted chan struct{} // is closed when the process has started to serve
	gone    chan struct{} // is closed when the process has ended and all its calls have failed
}

var (
	// errEnded is a cause of the failure of a call whose process ended before it answered.
	errEnded = errors.New("the process of the module ended")
	// errUnsent is another if the process did not get the call.
	errUnsent = errors.New("the call was not sent")
)

// start starts a process, which has not greeted yet.
func (m *module) start() (_ *process, err error) {
	p := &process{module: m, calls: map[uint64]*call{}, greeted: make(chan struct{}), gone: make(chan struct{})}
	var theirs []*os.File
	defer func() {
		for _, file := range theirs {
			file.Close()
		}
		if err != nil {
			p.closeConnections()
		}
	}()
	pins, err := socketPair(unix.SOCK_SEQPACKET)
	if err != nil {
		return nil, err
	}
	p.pins, theirs = pins[0], append(theirs, pins[1])
	for range 1 + lanes {
		pair, err := socketPair(unix.SOCK_STREAM)
		if err != nil {
			return nil, err
		}
		theirs = append(theirs, pair[1])
		l, err := newLane(pair[0])
		if err != nil {
			return nil, err
		}
		p.all = append(p.all, l)
	}
	p.shared, p.lanes = p.all[0], slices.Clone(p.all[1:])
	for i, l := range p.lanes {
		l.number = uint64(i) //nolint:gosec // there are few
	}
	return p, p.run(theirs)
}

// closeConnections closes the parent's ends of all sockets.
func (p *process) closeConnections() {
	for _, l := range p.all {
		l.conn.Close()
	}
	if p.pins != nil {
		p.pins.Close()
	}
}

func socketPair(kind int) (pair [2]*os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return pair, os.NewSyscallError("socketpair", err)
	}
	return [2]*os.File{os.NewFile(uintptr(fds[0]), "parent"), os.NewFile(uintptr(fds[1]), "worker")}, nil
}

// run starts the program with its ends of the sockets, and the goroutines that read its answers and wait for its end.
func (p *process) run(sockets []*os.File) error {
	//nolint:noctx,gosec // this very program, which outlives a call
	cmd := exec.Command("/proc/self/exe", argument, p.module.path)
	cmd.Args[0] = os.Args[0]
	cmd.Env = p.module.environment()
	cmd.ExtraFiles = sockets
	// A process group of its own: an interrupt of the terminal ends the parent, which ends this process in order.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	begun, ended := make(chan error, 1), make(chan error, 1)
	go func() {
		// The signal of Pdeathsig comes when the thread ends that started the process.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		if err == nil {
			p.pid = cmd.Process.Pid
			p.alive.Store(true)
		}
		begun <- err
		if err == nil {
			ended <- p.wait(cmd)
		}
	}()
	if err := <-begun; err != nil {
		return err
	}
	slog.Debug("process of a module started", "module", p.module.path, "pid", p.pid)
	go p.serve(ended)
	return nil
}

// wait waits for the end of the process, ends what it started in its process group, and returns how it ended.
func (p *process) wait(cmd *exec.Cmd) error {
	for {
		err := unix.Waitid(unix.P_PID, p.pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	p.mu.Lock()
	_ = unix.Kill(-p.pid, unix.SIGKILL)
	p.reaped = true
	p.mu.Unlock()
	// What the process has sent is still read. A process that the module started, and that left the group, may keep the
	// connection open for ever.
	_ = p.shared.conn.CloseRead()
	err := cmd.Wait()
	if err == nil {
		err = errors.New("exit status 0")
	}
	return err
}

// kill ends the process at once, for a reason.
func (p *process) kill(reason error) {
	p.alive.Store(false)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.reason == nil {
		p.reason = reason
	}
	if !p.reaped {
		_ = unix.Kill(-p.pid, unix.SIGKILL)
		_ = unix.Kill(p.pid, unix.SIGKILL) // the module may have left the group
	}
}

// serve reads frames until the process ends, and fails the calls that are left then.
func (p *process) serve(ended <-chan error) {
	err := p.read(p.shared.in)
	p.alive.Store(false)
	if errors.Is(err, errFrame) {
		slog.Error("the process of a module sent an invalid frame", "module", p.module.path, "error", err)
	}
	if !p.closing() {
		p.kill(nil) // one that closes the connection, or sends nonsense, serves no more
	}
	status := <-ended
	p.mu.Lock()
	if p.reason == nil {
		p.reason = status
	}
	calls, reason := p.calls, p.reason
	p.calls = nil
	if p.timer != nil {
		p.timer.Stop()
	}
	p.mu.Unlock()
	slog.Info("process of a module ended", "module", p.module.path, "pid", p.pid, "status", status, "reason", reason)
	p.closeConnections()
	p.module.ended(p)
	for _, c := range calls {
		p.module.backend.pins.died(c)
		c.finish(nil, p.failure(c.kind))
	}
	close(p.gone)
}

// closing reports whether the backend closes the process.
func (p *process) closing() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return errors.Is(p.reason, errClosed)
}

// failure returns the failure of a call that the process has not answered.
func (p *process) failure(k kind) *failure.Error {
	p.mu.Lock()
	reason := p.reason
	p.mu.Unlock()
	if reason == nil {
		reason = errors.New("it closed the connection")
	}
	f := failure.New(failure.Unavailable, "the process of the PKCS#11 module %s ended while %s: %w", p.module.path,
		k.activity(), reason).
		WithHint("run it again; if the module crashes, update it, and report the crash to its vendor")
	if k.changes() {
		f.What += "; the operation may still have taken effect"
		f.Hint = "check with 'notation-hsm key list' before you run it again"
	}
	f.Err = fmt.Errorf("%w: %w", errEnded, reason)
	return f
}

// unsent returns the failure of a call that the process does not get any more.
func (p *process) unsent() error {
	f := p.failure(opPing)
	f.Err = fmt.Errorf("%w: %w", errUnsent, f.Err)
	return f
}

// read reads frames until the connection ends.
func (p *process) read(in io.Reader) error {
	for {
		f, err := readFrame(in)
		if err != nil {
			return err
		}
		if err := p.receive(f); err != nil {
			return err
		}
	}
}

// receive handles one frame.
func (p *process) receive(f frame) error {
	switch f.kind {
	case msgStarted:
		select {
		case <-p.greeted:
			return fmt.Errorf("%w: a second greeting", errFrame)
		default:
		}
		if string(f.body) != greeting {
			return fmt.Errorf("%w: another greeting", errFrame)
		}
		close(p.greeted)
		return nil
	case msgAnswered, msgFailed:
		p.mu.Lock()
		c := p.calls[f.call]
		p.mu.Unlock()
		if c != nil && c.lane { // its caller waits for the lane, and nobody else would watch that
			return fmt.Errorf("%w: an answer on another connection", errFrame)
		}
		p.answer(f)
		return nil
	case msgProgress:
		made, err := decodeProgress(f.body)
		if err != nil {
			return fmt.Errorf("%w: %w", errFrame, err)
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		if c := p.calls[f.call]; c != nil {
			select {
			case c.report <- made:
			default: // the caller has not reported the last yet
			}
		}
		return nil
	case msgWantPIN, msgLoggedIn:
		p.mu.Lock()
		c := p.calls[f.call]
		p.mu.Unlock()
		switch {
		case c == nil: // it has ended meanwhile
			return nil
		case f.kind == msgWantPIN:
			return p.module.backend.pins.give(p, c, f)
		case len(f.body) > 0:
			p.module.backend.pins.loggedIn(c, decodeFailure(f.body))
		default:
			p.module.backend.pins.loggedIn(c, nil)
		}
		return nil
	}
	return fmt.Errorf("%w: its kind is %d", errFrame, f.kind)
}

// answer ends the call that a frame answers.
func (p *process) answer(f frame) {
	p.mu.Lock()
	c := p.calls[f.call]
	delete(p.calls, f.call)
	if c != nil && c.counts() {
		p.answers++
	}
	p.mu.Unlock()
	if c == nil {
		return
	}
	var err error
	if f.kind == msgFailed {
		err = decodeFailure(f.body)
	}
	p.module.backend.pins.answered(c, err)
	if failure.Is(err, failure.Timeout) {
		// A call into the module has not returned, and no other can be expected to.
		p.kill(errors.New("a call did not return in time"))
	}
	if c.finish(f.body, err) || err != nil {
		return
	}
	p.release(c.kind, f.body)
}

// call makes a call and returns the body of its answer. If ctx ends before, it returns a failure at once.
func (p *process) call(ctx context.Context, k kind, o owner, parts ...[]byte) ([]byte, error) {
	c := &call{kind: k, ctx: ctx, owner: o, result: make(chan callResult, 1), report: make(chan progress, 1)}
	number, err := p.send(c, p.shared.out, parts...)
	if err != nil {
		return nil, err
	}
	return p.await(ctx, c, number)
}

// await waits for the result of a call, or until the caller leaves.
func (p *process) await(ctx context.Context, c *call, number uint64) ([]byte, error) {
	for {
		select {
		case made := <-c.report:
			keystore.ReportProgress(ctx, made.Activity, made.Done, made.Total)
			continue
		case r := <-c.result:
			return r.body, r.err
		case <-ctx.Done():
		}
		if !c.abandon() {
			r := <-c.result
			return r.body, r.err
		}
		_ = p.shared.out.send(number, opCancel)
		return nil, interrupted(ctx, c.kind)
	}
}

// send numbers a call and sends it.
func (p *process) send(c *call, out *sender, parts ...[]byte) (uint64, error) {
	limit := c.limit(p.module.backend.limits.margin)
	c.due = time.Now().Add(limit)
	p.mu.Lock()
	if p.calls == nil || !p.alive.Load() {
		p.mu.Unlock()
		return 0, p.unsent()
	}
	p.last++
	number := p.last
	p.calls[number] = c
	if p.nextDue.IsZero() || c.due.Before(p.nextDue) {
		p.nextDue = c.due
		if p.timer == nil {
			p.timer = time.AfterFunc(limit, p.watch)
		} else {
			p.timer.Reset(limit)
		}
	}
	p.mu.Unlock()
	if err := out.send(number, c.kind, parts...); err != nil {
		p.mu.Lock()
		delete(p.calls, number)
		p.mu.Unlock()
		if errors.Is(err, errFrame) { // this call alone is too long
			return 0, failure.New(failure.Invalid, "cannot send a request of this length to the PKCS#11 module: %w", err).
				WithHint("use a shorter message")
		}
		p.kill(err)
		return 0, p.failure(c.kind)
	}
	return number, nil
}

// watch ends the process if it does not answer. The process itself fails a call into the module that takes longer than
// the timeout. So a call that is overdue has a ping sent, and the process is ended if the ping is overdue itself, or if
// a call that makes few steps has been overdue for as long as all of them may take.
func (p *process) watch() {
	now, next, overdue := time.Now(), time.Time{}, false
	margin := p.module.backend.limits.margin
	p.mu.Lock()
	for _, c := range p.calls {
		if !now.Before(c.due) {
			c.extended++
			if c.kind == opPing || !c.job() && !c.asks.Load() && c.extended > maxSteps {
				p.mu.Unlock()
				p.kill(errors.New("it did not answer"))
				return
			}
			overdue = true
			c.due = now.Add(c.limit(margin))
		}
		if next.IsZero() || c.due.Before(next) {
			next = c.due
		}
	}
	p.nextDue = next
	if !next.IsZero() {
		p.timer.Reset(time.Until(next))
	}
	p.mu.Unlock()
	if overdue {
		_, _ = p.send(&call{kind: opPing, ctx: context.Background(), result: make(chan callResult, 1)}, p.shared.out)
	}
}

// close has the process close its sessions and end, and ends it if it does not within the limit.
func (p *process) close() {
	p.alive.Store(false)
	p.mu.Lock()
	if p.reason == nil {
		p.reason = errClosed
	}
	p.mu.Unlock()
	_ = p.shared.conn.CloseWrite()
	select {
	case <-p.gone:
	case <-time.After(closeLimit + p.module.backend.limits.margin):
		p.kill(nil)
		<-p.gone
	}
}
