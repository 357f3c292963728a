package nethsmtest

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"net/http"
	"net/netip"
	"slices"
	"time"
)

type network struct {
	IPAddress string `json:"ipAddress"`
	Netmask   string `json:"netmask"`
	Gateway   string `json:"gateway,omitempty"`
	IPv6      *ipv6  `json:"ipv6,omitempty"`
}

type ipv6 struct {
	CIDR    string  `json:"cidr"`
	Gateway *string `json:"gateway"`
}

type logging struct {
	IPAddress string `json:"ipAddress"`
	Port      int    `json:"port"`
	LogLevel  string `json:"logLevel"`
}

type bootSwitch struct {
	Status string `json:"status"`
}

type clock struct {
	Time string `json:"time"`
}

type passphraseChange struct {
	New     string `json:"newPassphrase"`
	Current string `json:"currentPassphrase"`
}

// newPassphrase reads a change of passphrase; is compares the current one.
func (c *call) newPassphrase(is func(current string) bool) (digest, *reply) {
	var wanted passphraseChange
	if refusal := c.decode(&wanted); refusal != nil {
		return digest{}, refusal
	}
	if !goodPassphrase(wanted.New) {
		return digest{}, weakPassphrase()
	}
	if !is(wanted.Current) {
		return digest{}, fail(http.StatusBadRequest, "the current passphrase is another one")
	}
	return hashed(wanted.New), nil
}

func setUnlockPassphrase(c *call) *reply {
	changed, refusal := c.newPassphrase(c.state.unlockPassphrase.is)
	if refusal != nil {
		return refusal
	}
	c.state.unlockPassphrase = changed
	return done()
}

func setBackupPassphrase(c *call) *reply {
	changed, refusal := c.newPassphrase(func(current string) bool {
		if c.state.backupPassphrase == nil {
			return current == ""
		}
		return c.state.backupPassphrase.is(current)
	})
	if refusal != nil {
		return refusal
	}
	c.state.backupPassphrase = &changed
	return done()
}

func getUnattendedBoot(c *call) *reply {
	if c.server.unattendedBoot {
		return answer(bootSwitch{"on"})
	}
	return answer(bootSwitch{"off"})
}

func setUnattendedBoot(c *call) *reply {
	var wanted bootSwitch
	if refusal := c.decode(&wanted); refusal != nil {
		return refusal
	}
	if wanted.Status != "on" && wanted.Status != "off" {
		return fail(http.StatusBadRequest, "Invalid status data, expected 'on' or 'off'.")
	}
	c.server.unattendedBoot = wanted.Status == "on"
	return done()
}

func getTLSPublicKey(c *call) *reply { return publicPEM(c.server.tls.Leaf.PublicKey) }

// getTLSCertificate returns the certificate with the issuers that were set with it.
func getTLSCertificate(c *call) *reply {
	var chain []byte
	for _, der := range c.server.tls.Certificate {
		chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	return &reply{status: http.StatusOK, contentType: typePEM, body: chain}
}

func setTLSCertificate(c *call) *reply {
	chain, err := parseChain(c.body)
	if err != nil {
		return fail(http.StatusBadRequest, "certificate: %v", err)
	}
	leaf := chain[0]
	private, _ := c.server.tls.PrivateKey.(crypto.Signer)
	own, _ := private.Public().(interface{ Equal(crypto.PublicKey) bool })
	if own == nil || !own.Equal(leaf.PublicKey) {
		return fail(http.StatusBadRequest, "the certificate is not for the TLS key of this NetHSM")
	}
	if c.server.clusterCA != nil && !signedBy(leaf, c.server.clusterCA) {
		return fail(http.StatusPreconditionFailed, "the certificate is not signed by the cluster CA")
	}
	c.server.tls = tls.Certificate{PrivateKey: private, Leaf: leaf}
	for _, certificate := range chain {
		c.server.tls.Certificate = append(c.server.tls.Certificate, certificate.Raw)
	}
	return &reply{status: http.StatusCreated}
}

// parseChain reads one or more certificates.
func parseChain(data []byte) (chain []*x509.Certificate, err error) {
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		certificate, err := x509.ParseCertificate(block.Bytes)
		if err != nil || block.Type != "CERTIFICATE" {
			return nil, errors.Join(errors.New("a block is no certificate"), err)
		}
		chain = append(chain, certificate)
	}
	if len(chain) == 0 {
		return nil, errors.New("no certificate in PEM")
	}
	return chain, nil
}

func signedBy(leaf *x509.Certificate, caPEM []byte) bool {
	ca, err := parseChain(caPEM)
	return err == nil && leaf.CheckSignatureFrom(ca[0]) == nil
}

func postTLSCSR(c *call) *reply {
	private, _ := c.server.tls.PrivateKey.(crypto.Signer)
	return c.csr(private)
}

// generateTLSKey generates a key and a self-signed certificate, which the next connection gets.
func generateTLSKey(c *call) *reply {
	var wanted struct {
		Type   string `json:"type"`
		Length int    `json:"length,omitempty"`
	}
	if refusal := c.decode(&wanted); refusal != nil {
		return refusal
	}
	k, refusal := c.generate(wanted.Type, wanted.Length)
	if refusal != nil {
		return refusal
	}
	if k.signer == nil {
		return fail(http.StatusBadRequest, "a %s key is none for TLS", wanted.Type)
	}
	certificate, err := selfSigned(k.signer)
	if err != nil {
		return fail(http.StatusInternalServerError, "%v", err)
	}
	c.server.tls = certificate
	return done()
}

func getClusterCA(c *call) *reply {
	if c.server.clusterCA == nil {
		return fail(http.StatusNotFound, "the cluster CA was never set")
	}
	return &reply{status: http.StatusOK, contentType: typePEM, body: c.server.clusterCA}
}

func setClusterCA(c *call) *reply {
	chain, err := parseChain(c.body)
	if err != nil {
		return fail(http.StatusBadRequest, "certificate: %v", err)
	}
	ca := chain[0]
	if !ca.BasicConstraintsValid || !ca.IsCA || ca.KeyUsage&x509.KeyUsageCertSign == 0 {
		return fail(http.StatusBadRequest, "the certificate is not one of a CA (basicConstraints, keyUsage)")
	}
	if !signedBy(c.server.tls.Leaf, c.body) {
		return fail(http.StatusPreconditionFailed, "the TLS certificate is not signed by this CA")
	}
	c.server.clusterCA = slices.Clone(c.body)
	return &reply{status: http.StatusCreated}
}

func getNetwork(c *call) *reply { return answer(c.server.network) }

func setNetwork(c *call) *reply {
	var wanted network
	if refusal := c.decode(&wanted); refusal != nil {
		return refusal
	}
	if wanted.Gateway == "" {
		wanted.Gateway = "0.0.0.0"
	}
	for _, address := range []string{wanted.IPAddress, wanted.Netmask, wanted.Gateway} {
		if parsed, err := netip.ParseAddr(address); err != nil || !parsed.Is4() {
			return fail(http.StatusBadRequest, "%q is no IPv4 address", address)
		}
	}
	if wanted.IPv6 != nil {
		if prefix, err := netip.ParsePrefix(wanted.IPv6.CIDR); err != nil || !prefix.Addr().Is6() {
			return fail(http.StatusBadRequest, "%q is no IPv6 address with a prefix", wanted.IPv6.CIDR)
		}
	}
	c.server.network = wanted
	return done()
}

func getLogging(c *call) *reply { return answer(c.server.logging) }

func setLogging(c *call) *reply {
	var wanted logging
	if refusal := c.decode(&wanted); refusal != nil {
		return refusal
	}
	if _, err := netip.ParseAddr(wanted.IPAddress); err != nil || wanted.Port < 1 || wanted.Port > 65535 {
		return fail(http.StatusBadRequest, "the address and port are no syslog server's")
	}
	if !slices.Contains([]string{"debug", "info", "warning", "error"}, wanted.LogLevel) {
		return fail(http.StatusBadRequest, "unknown log level %q", wanted.LogLevel)
	}
	c.server.logging = wanted
	return done()
}

func getTime(c *call) *reply { return answer(clock{c.server.now().Format(time.RFC3339)}) }

func setTime(c *call) *reply {
	var wanted clock
	if refusal := c.decode(&wanted); refusal != nil {
		return refusal
	}
	t, refusal := parseTime(wanted.Time)
	if refusal != nil {
		return refusal
	}
	c.server.clock = time.Until(t)
	return done()
}

// parseTime takes RFC 3339 in UTC only, as the real one.
func parseTime(text string) (time.Time, *reply) {
	t, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return t, fail(http.StatusBadRequest, "Failed to decode timestamp: %v", err)
	}
	if _, offset := t.Zone(); offset != 0 {
		return t, fail(http.StatusBadRequest, "Error while parsing timestamp. Offset must be 0.")
	}
	return t, nil
}
