package nethsm

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/pin"
)

// credential is a user of the NetHSM with the source of the passphrase. Until a passphrase was accepted once, the
// backend sends it in one request at a time. After it was rejected, no store of the backend sends it again. It is safe
// for concurrent use.
type credential struct {
	user   string
	source string // of the passphrase, as internal/pin reads it
	given  string // the passphrase itself, if the settings have it
	// withheld is set if there is a PIN for tokens in general, which is not sent to a NetHSM with an unverified
	// certificate.
	withheld bool
	login    *login

	mu       sync.Mutex // guards the following
	secret   *pin.Secret
	accepted bool
	err      error          // why it cannot be used any more
	requests sync.WaitGroup // that use the secret
}

// operator returns the user that signs and decrypts.
func (c *client) operator() (*credential, error) {
	if err := checkOperator(c.settings.NetHSM); err != nil {
		return nil, err
	}
	as := c.credential(c.settings.NetHSM.User, c.settings.PINSource)
	as.given, as.withheld = c.settings.PIN, c.settings.NetHSM.Withheld
	return as, nil
}

func checkOperator(n *config.NetHSM) error {
	if n.User == "" {
		return failure.New(failure.Invalid, "no user of the NetHSM is set").
			WithHint("write user: NAME under nethsm in the config file, or set NOTATION_HSM_NETHSM_USER")
	}
	return nil
}

// administrator returns the user that creates and deletes keys and stores certificates.
func (c *client) administrator() (*credential, error) {
	if c.settings.NetHSM.Administrator == "" {
		return nil, failure.New(failure.Invalid, "no administrator of the NetHSM is set").
			WithHint("write administrator and administrator-pin-source under nethsm in the config file: an operator " +
				"cannot change keys")
	}
	return c.credential(c.settings.NetHSM.Administrator, c.settings.NetHSM.AdministratorPINSource), nil
}

// credential returns a user of the client's NetHSM.
func (c *client) credential(user, source string) *credential {
	return &credential{user: user, source: source, login: c.backend.login(user, c.settings.NetHSM.Instances)}
}

// readPassphrase reads the passphrase, unless it was read before. A person who is prompted is asked once.
func (c *client) readPassphrase(ctx context.Context, as *credential) error {
	c.used.Store(as, true)
	if c.closed.Load() { // nobody would clear the passphrase
		return errClosed(as)
	}
	if ready, err := as.state(); ready || err != nil {
		return err
	}
	if err := as.login.acquire(ctx); err != nil {
		return interrupted(ctx, "reading the passphrase of user "+as.user)
	}
	defer as.login.release()
	if ready, err := as.state(); ready || err != nil {
		return err
	}
	secret, err := as.read(ctx, c.settings.Timeout)
	if err != nil {
		if as.source == pin.Prompt && ctx.Err() == nil {
			as.close(err)
		}
		return err
	}
	as.mu.Lock()
	defer as.mu.Unlock()
	if as.err != nil { // closed in the meantime
		secret.Clear()
		return as.err
	}
	as.secret = secret
	return nil
}

// state reports whether the passphrase was read, or why it cannot be used.
func (c *credential) state() (ready bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return false, c.err
	}
	return c.secret != nil, c.login.rejection(c.accepted)
}

// use calls send with the passphrase. send returns the status of the response. use fails without calling send when the
// NetHSM has rejected the user, and with the error of the context when it ends before another request has shown whether
// the passphrase is right.
func (c *credential) use(ctx context.Context, send func(secret []byte) (status int, err error)) error {
	accepted, err := c.begin(false)
	if err == nil && !accepted {
		if err := c.login.acquire(ctx); err != nil {
			return err
		}
		if accepted, err = c.begin(true); accepted || err != nil {
			c.login.release() // for the others that waited
		} else {
			defer c.login.release()
		}
	}
	if err != nil {
		return err
	}
	defer c.requests.Done()
	status, err := send(c.secret.Bytes())
	if err != nil {
		return err
	}
	return c.judge(status)
}

// begin reports whether the passphrase was accepted before. If so, or if the caller has the turn, it counts a request
// that uses the secret. It fails if the passphrase must not be sent.
func (c *credential) begin(turn bool) (accepted bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return false, c.err
	}
	if err := c.login.rejection(c.accepted); err != nil {
		return false, err
	}
	if c.accepted || turn {
		c.requests.Add(1)
	}
	return c.accepted, nil
}

// errRejected is in the failure of a user whose credentials were rejected.
var errRejected = errors.New("unknown user or wrong passphrase")

// judge learns from the status of a response whether the passphrase is right.
func (c *credential) judge(status int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case status == http.StatusUnauthorized:
		f := failure.New(failure.Denied, "the NetHSM rejected the credentials of user %s", c.user).
			WithHint("check the user name and the passphrase: this process does not send the passphrase again")
		f.Err = errRejected
		c.login.reject(f, c.accepted)
		if c.err = f; !c.accepted { // so no other request uses it
			c.secret.Clear()
		}
		return f
	case status < 500 && status != http.StatusPreconditionFailed && status != http.StatusTooManyRequests:
		c.accepted = true
	}
	return nil
}

// close clears the passphrase once no request uses it. Later requests fail with the error.
func (c *credential) close(err error) {
	c.mu.Lock()
	if c.err == nil {
		c.err = err
	}
	c.mu.Unlock()
	c.requests.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.secret.Clear()
}

// read reads the passphrase from its source, within the limit unless a person is prompted.
func (c *credential) read(ctx context.Context, limit time.Duration) (*pin.Secret, error) {
	switch {
	case c.source == "" && c.given != "":
		return pin.From(c.given)
	case c.source == "" && c.withheld:
		return nil, failure.New(failure.Denied,
			"no passphrase for user %s of the NetHSM: its TLS certificate is not verified (insecure), and a PIN that is set "+
				"for tokens in general is not sent to it", c.user).
			WithHint("write pin-source under nethsm in the config file, or set NOTATION_HSM_NETHSM_PIN_SOURCE; better, set " +
				"fingerprints or ca-file")
	case c.source == "":
		return nil, failure.New(failure.Denied, "no passphrase for user %s of the NetHSM: no pin-source is set", c.user).
			WithHint("set pin-source (of the administrator: administrator-pin-source) to env:NAME, file:/path, " +
				`"exec:command args" or prompt`)
	case c.source == pin.None:
		return nil, failure.New(failure.Denied, "no passphrase for user %s of the NetHSM: pin-source is none", c.user).
			WithHint("use another pin-source")
	case c.source == pin.Prompt:
		return pin.Read(ctx, c.source, "NetHSM user "+c.user)
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return pin.Read(ctx, c.source, c.user)
}
