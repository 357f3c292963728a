package cosign

import (
	"bytes"
	"strings"
	"testing"

	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

// TestPrompt signs with a PIN that a person types. Cosign starts the plugin several times for a signature, which asks
// once, on the terminal; and not at all to verify.
func TestPrompt(t *testing.T) {
	softhsmtest.Parallel(t)
	u := newUser(t)
	reference, _ := u.key(t, "EC-256", "release")
	image := u.image(t, "prompt")
	softhsmtest.Setenv(t, "NOTATION_HSM_PIN", "")
	softhsmtest.Setenv(t, "NOTATION_HSM_PIN_SOURCE", "prompt")
	// sign runs cosign at a terminal where a person types a PIN, or, for "", without a terminal.
	sign := func(pin string) (shown string, err error) {
		t.Helper()
		cmd := softhsmtest.Command(t, u.cosign, append(append([]string{"sign"}, u.offline...), "--key", reference, image)...)
		var output bytes.Buffer
		cmd.Stdout, cmd.Stderr = &output, &output
		terminal := softhsmtest.NewTerminal(t, `PIN for token "signing": `)
		terminal.Control(cmd)
		if pin == "" {
			cmd.Stdin, cmd.SysProcAttr.Setctty = nil, false
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if pin != "" {
			terminal.Answer(t, pin)
		}
		err = cmd.Wait() // a second question would never be answered
		return output.String(), err
	}
	if shown, err := sign(softhsmtest.PIN); err != nil || strings.Contains(shown, "PIN for token") {
		t.Errorf("%v: %s", err, shown)
	}
	if shown, err := sign("0000"); err == nil || !strings.Contains(shown, "CKR_PIN_INCORRECT") {
		t.Errorf("%v: %s", err, shown)
	}
	if shown, err := sign(""); err == nil || !strings.Contains(shown, "there is no terminal") ||
		!strings.Contains(shown, "Hint: ") {
		t.Errorf("%v: %s", err, shown)
	}
	softhsmtest.Run(t, u.cosign, append(append([]string{"verify"}, u.trusted...), "--key", reference, image)...)
}
