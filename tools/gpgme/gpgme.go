// Package gpgme stands in for the bindings to GPGME, the C library, wherever the go command is run in this repository
// without the build tag containers_image_openpgp: go.podman.io/image imports them to verify GPG signatures of images.
// notation-hsm verifies none, so nobody who builds or tests it needs GPGME. New fails, and nothing else is called.
//
// ../../go.work puts it in place. A build outside the workspace, as `make` and `go install` do it, takes the tag.
package gpgme

import (
	"errors"
	"io"
	"os"
)

var errAbsent = errors.New("this build has no GPGME")

// What go.podman.io/image/v5/signature uses of the package.
type (
	// Context holds nothing.
	Context struct{}
	// Data holds nothing.
	Data struct{}
	// Key holds nothing.
	Key struct{}
	// Signature is the outcome of a verification.
	Signature struct {
		Fingerprint            string
		Status, ValidityReason error
		Validity               Validity
		WrongKeyUsage          bool
	}
	// ImportStatus is the outcome of one imported key.
	ImportStatus struct {
		Fingerprint string
		Result      error
	}
	// ImportResult is the outcome of an import.
	ImportResult struct{ Imports []ImportStatus }

	// Protocol, PinEntryMode, SigMode and Validity number GPGME's choices.
	Protocol     int
	PinEntryMode int
	SigMode      int
	Validity     int
	// Callback asks for a passphrase.
	Callback func(hint string, wrong bool, f *os.File) error
)

// The choices that go.podman.io/image/v5/signature makes.
const (
	ProtocolOpenPGP  Protocol     = 0
	PinEntryLoopback PinEntryMode = 4
	SigModeNormal    SigMode      = 0
	ValidityNever    Validity     = 3
)

// New fails.
func New() (*Context, error) { return nil, errAbsent }

// NewDataBytes fails.
func NewDataBytes([]byte) (*Data, error) { return nil, errAbsent }

// NewDataWriter fails.
func NewDataWriter(io.Writer) (*Data, error) { return nil, errAbsent }

// SetProtocol fails.
func (*Context) SetProtocol(Protocol) error { return errAbsent }

// SetEngineInfo fails.
func (*Context) SetEngineInfo(Protocol, string, string) error { return errAbsent }

// SetArmor does nothing.
func (*Context) SetArmor(bool) {}

// SetTextMode does nothing.
func (*Context) SetTextMode(bool) {}

// SetCallback fails.
func (*Context) SetCallback(Callback) error { return errAbsent }

// SetPinEntryMode fails.
func (*Context) SetPinEntryMode(PinEntryMode) error { return errAbsent }

// GetKey fails.
func (*Context) GetKey(string, bool) (*Key, error) { return nil, errAbsent }

// Import fails.
func (*Context) Import(*Data) (*ImportResult, error) { return nil, errAbsent }

// Sign fails.
func (*Context) Sign([]*Key, *Data, *Data, SigMode) error { return errAbsent }

// Verify fails.
func (*Context) Verify(*Data, *Data, *Data) (string, []Signature, error) { return "", nil, errAbsent }

// Fingerprint returns nothing.
func (*Key) Fingerprint() string { return "" }
