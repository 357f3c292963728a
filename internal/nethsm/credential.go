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

// credential is a user of the NetHSM and the way to the passphrase. A passphrase that was refused is not sent again, to
// no instance: until one request has shown that it is right, the others wait.
type credential struct {
	user   string
	source string // as internal/pin reads it
	given  string // the passphrase itself, when the config file has it
	// withheld says that there is a PIN for any token, which is not sent to a NetHSM whose certificate is not verified.
	withheld bool

	mu     sync.Mutex
	secret *pin.Secret
	proven bool
	users  sync.WaitGroup // requests with a proven passphrase
	err    error          // why it can't be used; there is no second try
}

// operator is the user who signs, in the words of the settings.
func operator(s *config.Settings) (*credential, error) {
	if s.NetHSM.User == "" {
		return nil, failure.New(failure.Denied, "no user of the NetHSM is named").
			WithHint("write user: NAME under nethsm in the config file, or set NOTATION_HSM_NETHSM_USER")
	}
	return &credential{user: s.NetHSM.User, source: s.PINSource, given: s.PIN, withheld: s.NetHSM.Withheld}, nil
}

// administrator is the user who makes and deletes keys and stores certificates.
func administrator(s *config.Settings) (*credential, error) {
	if s.NetHSM.Administrator == "" {
		return nil, failure.New(failure.Denied, "this needs an administrator of the NetHSM, and none is named").
			WithHint("write administrator and administrator-pin-source under nethsm in the config file: an operator " +
				"can't change keys")
	}
	return &credential{user: s.NetHSM.Administrator, source: s.NetHSM.AdministratorPINSource}, nil
}

// ready fetches the passphrase, once.
func (c *credential) ready(ctx context.Context, limit time.Duration) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil && c.secret == nil {
		c.secret, c.err = c.fetch(ctx, limit)
	}
	return c.err
}

// use lends the passphrase to send, which returns the status of the answer.
func (c *credential) use(send func(secret []byte) (status int, err error)) error {
	c.mu.Lock()
	if c.err != nil {
		defer c.mu.Unlock()
		return c.err
	}
	if c.proven {
		c.users.Add(1)
		c.mu.Unlock()
		status, err := send(c.secret.Bytes())
		c.users.Done()
		if status == http.StatusUnauthorized { // it was changed in the meantime
			c.mu.Lock()
			defer c.mu.Unlock()
			c.err = c.refused()
			return c.err
		}
		return err
	}
	defer c.mu.Unlock()
	status, err := send(c.secret.Bytes())
	switch {
	case err != nil:
		return err
	case status == http.StatusUnauthorized:
		c.secret.Clear()
		c.err = c.refused()
		return c.err
	case status < 500 && status != http.StatusPreconditionFailed && status != http.StatusTooManyRequests:
		c.proven = true
	}
	return nil
}

// errStranger is in the failure of a user who is not let in.
var errStranger = errors.New("unknown user or wrong passphrase")

func (c *credential) refused() error {
	f := failure.New(failure.Denied, "the NetHSM does not let user %s in", c.user).
		WithHint("the passphrase is wrong, or there is no such user; check them. Nothing tries the passphrase again " +
			"by itself")
	f.Err = errStranger
	return f
}

// close clears the passphrase, when the requests that are under way have ended. Later ones fail.
func (c *credential) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.users.Wait()
	c.secret.Clear()
	if c.err == nil {
		c.err = failure.New(failure.Internal, "the NetHSM is closed for user %s", c.user)
	}
}

func (c *credential) fetch(ctx context.Context, limit time.Duration) (*pin.Secret, error) {
	switch c.source {
	case "":
		if c.given != "" {
			return pin.From(c.given)
		}
		if c.withheld {
			return nil, failure.New(failure.Denied,
				"no passphrase for user %s of the NetHSM: its TLS certificate is not verified (insecure), and a PIN that is set "+
					"for any token is not sent to whoever answers", c.user).
				WithHint("write pin-source under nethsm in the config file, or set NOTATION_HSM_NETHSM_PIN_SOURCE; better, set " +
					"fingerprints or ca-file")
		}
		return nil, failure.New(failure.Denied, "no passphrase for user %s of the NetHSM: no pin-source is set", c.user).
			WithHint(`set pin-source (of the administrator: administrator-pin-source) to env:NAME, file:/path, "exec:command args" or prompt`)
	case pin.None:
		return nil, failure.New(failure.Denied, "pin-source is none, but a NetHSM wants a passphrase of user %s", c.user).
			WithHint("use another pin-source")
	case pin.Prompt: // a person takes as long as they take
		return pin.Read(ctx, c.source, "NetHSM user "+c.user)
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return pin.Read(ctx, c.source, c.user)
}
