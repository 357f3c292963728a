package worker

import (
	"context"
	"errors"
	"time"
)

// use makes a call that uses a key.
func (p *process) use(ctx context.Context, k kind, o owner, parts ...[]byte) ([]byte, error) {
	l := p.takeLane()
	if l == nil {
		return p.call(ctx, k, o, parts...)
	}
	if !l.started {
		l.started = true
		_ = p.shared.out.send(l.number, opStartLane) // else the call fails as well
	}
	c := &call{kind: k, ctx: ctx, owner: o, lane: true, result: make(chan callResult, 1)}
	number, err := p.send(c, l.out, parts...)
	if err != nil {
		p.giveLane(l)
		return nil, err
	}
	var expired chan struct{}
	stop := func() bool { return true }
	if ctx.Done() != nil {
		expired = make(chan struct{})
		stop = context.AfterFunc(ctx, func() {
			_ = l.conn.SetReadDeadline(time.Unix(1, 0))
			close(expired)
		})
	}
	f, err := p.readLane(l, number)
	if !stop() {
		<-expired
		_ = l.conn.SetReadDeadline(time.Time{})
	}
	if err == nil {
		p.giveLane(l)
		p.answer(f)
	} else if ctx.Err() != nil {
		go p.drain(l, number)
	}
	return p.await(ctx, c, number)
}

// readLane reads the answer of a call. It ends a process that sends anything else.
func (p *process) readLane(l *lane, number uint64) (frame, error) {
	f, err := readFrame(l.in)
	if err == nil && (f.call != number || f.kind != msgAnswered && f.kind != msgFailed) {
		err = errFrame
	}
	if errors.Is(err, errFrame) {
		p.kill(err)
	}
	return f, err
}

// drain reads the answer of a call whose caller has left, and gives the lane back.
func (p *process) drain(l *lane, number uint64) {
	if f, err := p.readLane(l, number); err == nil {
		p.giveLane(l)
		p.answer(f)
	}
}

// takeLane returns a lane, the one that was used last if there are several, or nil.
func (p *process) takeLane() *lane {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.lanes) == 0 {
		return nil
	}
	l := p.lanes[len(p.lanes)-1]
	p.lanes = p.lanes[:len(p.lanes)-1]
	return l
}

func (p *process) giveLane(l *lane) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lanes = append(p.lanes, l)
}
