package approval

import (
	"encoding/hex"
	"errors"
	"fmt"
	"time"
)

// loginType is the type of a Login.
const loginType = "login/v1"

// maxURL is the length of the longest URL of a broker, in bytes.
const maxURL = 2000

// Login is what a person signs to get a session with a broker, or to show that they have a key.
type Login struct {
	Broker string    // its public URL
	Random [32]byte  // so that no two logins are the same
	Time   time.Time // of the person's clock, in whole seconds
}

// loginJSON is the encoding of a Login, in the order of its names.
type loginJSON struct {
	Broker string `json:"broker"`
	Random string `json:"random"` // hex
	Time   string `json:"time"`   // RFC 3339, in UTC
	Type   string `json:"type"`
}

// Encode returns a login as canonical JSON: the bytes that are signed.
func (l *Login) Encode() ([]byte, error) {
	return canonical(loginJSON{Broker: l.Broker, Random: hex.EncodeToString(l.Random[:]),
		Time: l.Time.UTC().Format(time.RFC3339), Type: loginType})
}

// DecodeLogin reads a login. It fails with Invalid for bytes that are not the one encoding of a login.
func DecodeLogin(data []byte) (*Login, error) {
	var read loginJSON
	if err := strict(data, maxPart, &read); err != nil {
		return nil, invalid("login", err)
	}
	random, err := hex.DecodeString(read.Random)
	switch {
	case read.Type != loginType:
		return nil, invalid("login", fmt.Errorf("its type is %.40q", read.Type))
	case err != nil || len(random) != 32:
		return nil, invalid("login", errors.New("random is not 32 bytes in hexadecimal digits"))
	case read.Broker == "" || len(read.Broker) > maxURL:
		return nil, invalid("login", fmt.Errorf("its broker does not have 1 to %d bytes", maxURL))
	}
	l := &Login{Broker: read.Broker, Random: [32]byte(random)}
	if l.Time, err = time.Parse(time.RFC3339, read.Time); err != nil {
		return nil, invalid("login", err)
	}
	if again, err := l.Encode(); err != nil || string(again) != string(data) {
		return nil, invalid("login", errors.New("it is not in its canonical form"))
	}
	return l, nil
}
