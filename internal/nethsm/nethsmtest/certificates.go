package nethsmtest

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"net"
	"net/http"
	"slices"
	"strings"
)

type distinguishedName struct {
	CountryName            string    `json:"countryName,omitempty"`
	StateOrProvinceName    string    `json:"stateOrProvinceName,omitempty"`
	LocalityName           string    `json:"localityName,omitempty"`
	OrganizationName       string    `json:"organizationName,omitempty"`
	OrganizationalUnitName string    `json:"organizationalUnitName,omitempty"`
	CommonName             string    `json:"commonName"`
	EmailAddress           string    `json:"emailAddress,omitempty"`
	SubjectAltNames        *[]string `json:"subjectAltNames,omitempty"`
}

var emailAddress = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 1}

// postKeyCSR ignores tags, as a real NetHSM does.
func postKeyCSR(c *call) *reply {
	k, refusal := c.key()
	if refusal != nil {
		return refusal
	}
	if k.signer == nil {
		return fail(http.StatusBadRequest, "Generic keys cannot create certificates")
	}
	return c.csr(k.signer)
}

func (c *call) csr(key crypto.Signer) *reply {
	var name distinguishedName
	if refusal := c.decode(&name); refusal != nil {
		return refusal
	}
	if name.CommonName == "" {
		return fail(http.StatusBadRequest, "JSON field commonName is empty.")
	}
	request := &x509.CertificateRequest{Subject: name.subject()}
	alternatives := []string{name.CommonName} // without the property; an empty list asks for none
	if name.SubjectAltNames != nil {
		alternatives = *name.SubjectAltNames
	}
	for _, alternative := range alternatives {
		address, isIP := strings.CutPrefix(alternative, "IP:")
		ip := net.ParseIP(address)
		switch {
		case isIP && ip == nil:
			return fail(http.StatusBadRequest, "%q is no IP address", address)
		case isIP:
			request.IPAddresses = append(request.IPAddresses, ip)
		default:
			request.DNSNames = append(request.DNSNames, alternative)
		}
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, request, key)
	if err != nil {
		return fail(http.StatusBadRequest, "creating signing request: %v", err)
	}
	return answerPEM("CERTIFICATE REQUEST", der)
}

func (n distinguishedName) subject() pkix.Name {
	one := func(value string) []string {
		if value == "" {
			return nil
		}
		return []string{value}
	}
	subject := pkix.Name{
		Country: one(n.CountryName), Province: one(n.StateOrProvinceName), Locality: one(n.LocalityName),
		Organization: one(n.OrganizationName), OrganizationalUnit: one(n.OrganizationalUnitName), CommonName: n.CommonName,
	}
	if n.EmailAddress != "" {
		address := asn1.RawValue{Tag: asn1.TagIA5String, Bytes: []byte(n.EmailAddress)}
		subject.ExtraNames = []pkix.AttributeTypeAndValue{{Type: emailAddress, Value: address}}
	}
	return subject
}

func getCertificate(c *call) *reply {
	k, refusal := c.key()
	if refusal != nil {
		return refusal
	}
	if k.certificate == nil {
		return fail(http.StatusNotFound, "There is no certificate for this KeyID.")
	}
	return &reply{status: http.StatusOK, contentType: typeBinary, body: k.certificate}
}

func setCertificate(c *call) *reply {
	k, refusal := c.key()
	if refusal != nil {
		return refusal
	}
	if k.certificate != nil {
		return fail(http.StatusConflict, "Key already contains a certificate")
	}
	k.certificate = slices.Clone(c.body)
	return &reply{status: http.StatusCreated}
}

func deleteCertificate(c *call) *reply {
	k, refusal := c.key()
	if refusal != nil {
		return refusal
	}
	if k.certificate == nil {
		return fail(http.StatusNotFound, "There is no certificate for this KeyID.")
	}
	k.certificate = nil
	return done()
}
