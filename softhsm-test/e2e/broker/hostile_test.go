package broker

import (
	"crypto/ecdsa"
	"errors"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/notation-hsm/notation-hsm/internal/brokerapi/brokerapitest"
	"github.com/notation-hsm/notation-hsm/internal/certs"
	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

// hostile is an agent, and what is sent to it.
type hostile struct {
	softhsmtest.Hostile
	agent *softhsmtest.Agent
}

// TestHostile sends an agent 500 malformed requests from 64 clients at once, leaves requests and signatures halfway,
// and holds connections. Each request is refused, no answer blames the agent, and what the agent uses goes back.
func TestHostile(t *testing.T) {
	softhsmtest.Parallel(t)
	softhsmtest.NeedRoot(t) // to count the descriptors of a process that hides its memory
	token := softhsmtest.NewToken(t, "signing")
	softhsmtest.Setenv(t, "NOTATION_HSM_PIN", softhsmtest.PIN)
	_, pem := softhsmtest.NewKey(t, token, softhsmtest.Build(t, "notation-hsm"), "EC-256", "release")
	chain, err := certs.ReadFile(pem)
	if err != nil {
		t.Fatal(err)
	}
	h := &hostile{agent: softhsmtest.StartAgent(t, token)}
	h.Hostile = softhsmtest.Hostile{TB: t, Dial: h.dial, Public: chain[0].PublicKey.(*ecdsa.PublicKey),
		Description: brokerapitest.Load(t)}
	h.Sign()
	pid := h.pid()
	h.Storm(0) // so that buffers and sessions that are kept are there before the first count
	descriptors, memory := h.Settled(pid), h.Memory(pid)

	for round := range 3 {
		h.Storm(uint64(round + 1))
		h.Vanish()
		h.Hold()
		h.Sign()
	}
	for now := 0; ; time.Sleep(10 * time.Millisecond) {
		if now = h.Settled(pid); now <= descriptors+2 {
			break
		}
	}
	now := h.Memory(pid)
	t.Logf("descriptors: %d; resident memory: %d KiB, then %d KiB", descriptors, memory, now)
	if now > memory+64<<10 {
		t.Errorf("the agent has %d KiB in memory, and had %d KiB before", now, memory)
	}
	h.Sign()
}

func (h *hostile) dial() net.Conn {
	for {
		conn, err := net.Dial("unix", h.agent.Socket)
		if err == nil {
			return conn
		}
		if !errors.Is(err, unix.EAGAIN) { // the queue of the socket is full
			h.Fatal(err)
		}
		time.Sleep(time.Millisecond)
	}
}

// pid returns the process of the agent.
func (h *hostile) pid() (pid int) {
	conn := h.dial()
	defer conn.Close()
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		h.Fatal(err)
	}
	err = raw.Control(func(fd uintptr) {
		peer, failed := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		if failed != nil {
			h.Error(failed)
			return
		}
		pid = int(peer.Pid)
	})
	if err != nil {
		h.Fatal(err)
	}
	return pid
}
