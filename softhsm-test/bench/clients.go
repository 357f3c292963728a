package main

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

// clients are connections to an agent, each of which sends a request as soon as the last is answered. One loop serves
// all: it shares the processors with the agent that is measured, and a goroutine for each would cost twice as much.
type clients struct {
	request []byte
	answers map[int32][]byte // what has come of the answer, by descriptor
	epoll   int
}

// throughAgent prints how many signatures a second a number of clients get from an agent, in some seconds or for a
// count of signatures.
func throughAgent(socket, label string, number int, seconds float64, count int64) error {
	jws, algorithm := "ES256", "ECDSA-SHA-256"
	if strings.Contains(label, "RSA") {
		jws, algorithm = "PS256", "RSASSA-PSS-SHA-256"
	}
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(epoll)
	c := clients{epoll: epoll, answers: map[int32][]byte{},
		request: softhsmtest.SignatureRequest(label, algorithm, softhsmtest.SigningInput(jws, 1))}
	start := time.Now()
	for range number {
		if err := c.connect(socket); err != nil {
			return err
		}
	}
	made, err := c.sign(func(made int64) bool {
		return count > 0 && made >= count || count == 0 && time.Since(start).Seconds() >= seconds
	})
	if err == nil {
		fmt.Println(float64(made) / time.Since(start).Seconds())
	}
	return err
}

// connect makes a connection and sends the first request.
func (c *clients) connect(socket string) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: socket}); err != nil {
		return err
	}
	event := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)} //nolint:gosec // a descriptor fits
	if err := unix.EpollCtl(c.epoll, unix.EPOLL_CTL_ADD, fd, &event); err != nil {
		return err
	}
	return c.ask(fd)
}

// ask sends a request, which the socket takes at once.
func (c *clients) ask(fd int) error {
	n, err := unix.Write(fd, c.request)
	if err == nil && n < len(c.request) {
		err = errors.New("the request does not fit into the socket")
	}
	return err
}

// sign takes answers and sends requests until there are enough, and returns the number of answers.
func (c *clients) sign(enough func(int64) bool) (made int64, err error) {
	var events [64]unix.EpollEvent
	var buffer [64 << 10]byte
	for !enough(made) {
		ready, err := unix.EpollWait(c.epoll, events[:], -1)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return made, err
		}
		for _, event := range events[:max(ready, 0)] {
			n, err := unix.Read(int(event.Fd), buffer[:])
			if err != nil {
				return made, err
			}
			answer := append(c.answers[event.Fd], buffer[:n]...)
			whole, err := isAnswer(answer)
			if err == nil && n == 0 {
				err = errors.New("the agent closed a connection")
			}
			if err != nil {
				return made, fmt.Errorf("%w: %s", err, answer)
			}
			c.answers[event.Fd] = answer
			if whole {
				c.answers[event.Fd] = answer[:0]
				made++
				if err := c.ask(int(event.Fd)); err != nil {
					return made, err
				}
			}
		}
	}
	return made, nil
}

// isAnswer reports whether an answer is complete. It fails for one that is no signature.
func isAnswer(answer []byte) (bool, error) {
	head, body, ok := bytes.Cut(answer, []byte("\r\n\r\n"))
	if !ok {
		return false, nil
	}
	if !bytes.HasPrefix(head, []byte("HTTP/1.1 201 ")) {
		return false, errors.New("no signature")
	}
	_, length, _ := bytes.Cut(head, []byte("\r\nContent-Length: "))
	length, _, _ = bytes.Cut(length, []byte("\r\n"))
	size, err := strconv.Atoi(string(length))
	return len(body) >= size, err
}
