package pin

import (
	"context"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// A Guard is asked before a PIN is read and tried. It keeps what is known of PINs longer than the process lives. It
// fails with Denied for a PIN that must not be tried. Else it returns a function that is called once when the login has
// ended: with why the PIN must not be tried again, or nil.
type Guard func(context.Context, Login) (ended func(refusal *failure.Error), err error)

// Login is a login of a user that is about to begin.
type Login struct {
	Module string // path of the library
	Token  string // URI, as the module describes the token
	Name   string // of the token, for people
	Source string // of the PIN; "" if it stands in the settings
}
