package brokerfile

import "net/url"

// Web is the page for approvers.
type Web struct {
	OIDC *SignIn `yaml:"oidc"` // where people sign in beside their passkey; nil for nowhere
}

// SignIn is the broker as a client of the company's provider of OpenID Connect.
type SignIn struct {
	Issuer   string `yaml:"issuer"`    // https URL
	ClientID string `yaml:"client-id"` // of the broker
	Secret   string `yaml:"secret"`    // file of the client's secret, or "" for a public client
	CA       string `yaml:"ca"`        // PEM file with the CA of the provider's certificate, or "" for the system's
}

func (f *File) checkWeb(add adding) {
	o := f.Web.OIDC
	if o == nil {
		return
	}
	u, err := url.Parse(o.Issuer)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		add("web.oidc.issuer", "write it as the provider does, such as https://login.example.com", "%q is not an https URL",
			o.Issuer)
	}
	if o.ClientID == "" {
		add("web.oidc.client-id", "write the ID that the provider gave the broker", "it is missing")
	}
	for _, one := range []struct{ name, path string }{{"secret", o.Secret}, {"ca", o.CA}} {
		if one.path != "" && !absolute(one.path) {
			add("web.oidc."+one.name, "name the file by its absolute path", "%q is not an absolute path", one.path)
		}
	}
}
