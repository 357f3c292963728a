package browser

import (
	"github.com/chromedp/cdproto/webauthn"
)

// AuthenticatorOption changes the authenticator of a person. By default it is the one of the device: it stores passkeys
// that are bound to it, and verifies its user.
type AuthenticatorOption func(*webauthn.VirtualAuthenticatorOptions)

// SecurityKey is an authenticator that is plugged in.
func SecurityKey(o *webauthn.VirtualAuthenticatorOptions) {
	o.Transport = webauthn.AuthenticatorTransportUsb
}

// Synced is an authenticator whose passkeys are copied to other devices.
func Synced(o *webauthn.VirtualAuthenticatorOptions) {
	o.DefaultBackupEligibility, o.DefaultBackupState = true, true
}

// authenticator gives the page an authenticator whose user agrees to everything at once.
func (p *Page) authenticator(options []AuthenticatorOption) {
	p.t.Helper()
	if _, err := call(p, webauthn.Enable, webauthn.EnableParams{}); err != nil {
		p.t.Fatal(err)
	}
	o := &webauthn.VirtualAuthenticatorOptions{Protocol: webauthn.AuthenticatorProtocolCtap2,
		Ctap2version: webauthn.Ctap2versionCtap21, Transport: webauthn.AuthenticatorTransportInternal,
		HasResidentKey: true, HasUserVerification: true, IsUserVerified: true, AutomaticPresenceSimulation: true}
	for _, option := range options {
		option(o)
	}
	made, err := call(p, webauthn.AddVirtualAuthenticator, webauthn.AddVirtualAuthenticatorParams{Options: o})
	if err != nil {
		p.t.Fatal(err)
	}
	p.device = made.AuthenticatorID
}

// Passkeys returns the passkeys that the authenticator has, with their private keys.
func (p *Page) Passkeys() []*webauthn.Credential {
	p.t.Helper()
	has, err := call(p, webauthn.GetCredentials, webauthn.GetCredentialsParams{AuthenticatorID: p.device})
	if err != nil {
		p.t.Fatal(err)
	}
	return has.Credentials
}

// Verified says whether the authenticator recognizes its user from now on.
func (p *Page) Verified(verified bool) {
	p.t.Helper()
	if _, err := call(p, webauthn.SetUserVerified, webauthn.SetUserVerifiedParams{AuthenticatorID: p.device,
		IsUserVerified: verified}); err != nil {
		p.t.Fatal(err)
	}
}
