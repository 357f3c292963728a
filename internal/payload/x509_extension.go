package payload

import (
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/notation-hsm/notation-hsm/internal/bound"
)

// extensionNames are the names of extensions in RFC 5280, by object identifier.
var extensionNames = map[string]string{
	"2.5.29.14": "subjectKeyIdentifier", "2.5.29.15": "keyUsage", "2.5.29.17": "subjectAltName",
	"2.5.29.19": "basicConstraints", "2.5.29.20": "cRLNumber", "2.5.29.21": "cRLReason", "2.5.29.24": "invalidityDate",
	"2.5.29.27": "deltaCRLIndicator", "2.5.29.28": "issuingDistributionPoint", "2.5.29.30": "nameConstraints",
	"2.5.29.31": "cRLDistributionPoints", "2.5.29.32": "certificatePolicies", "2.5.29.35": "authorityKeyIdentifier",
	"2.5.29.37": "extKeyUsage", "1.3.6.1.5.5.7.1.1": "authorityInfoAccess",
}

// keyUsages are the names of the bits of keyUsage.
var keyUsages = []string{"digitalSignature", "contentCommitment", "keyEncipherment", "dataEncipherment", "keyAgreement",
	"keyCertSign", "cRLSign", "encipherOnly", "decipherOnly"}

// purposes are the names of extended key usages, by object identifier.
var purposes = map[string]string{
	"2.5.29.37.0": "any", "1.3.6.1.5.5.7.3.1": "serverAuth", "1.3.6.1.5.5.7.3.2": "clientAuth",
	"1.3.6.1.5.5.7.3.3": "codeSigning", "1.3.6.1.5.5.7.3.4": "emailProtection", "1.3.6.1.5.5.7.3.8": "timeStamping",
	"1.3.6.1.5.5.7.3.9": "OCSPSigning",
}

// readExtensions reads a list of extensions, and adds each to the annotations, by its name or object identifier.
func (a *Artifact) readExtensions(list []byte, place string) error {
	elements, err := derElements(list)
	if err != nil || len(elements) != 1 || elements[0].FullBytes[0] != tagSequence[0] {
		return fmt.Errorf("%s: not one sequence", place)
	}
	extensions, err := derElements(elements[0].Bytes)
	if err != nil || len(extensions) == 0 {
		return fmt.Errorf("%s: an empty list", place)
	}
	for i, element := range extensions {
		var e pkix.Extension
		if err := decodeDER(element.FullBytes, &e, ""); err != nil {
			return fmt.Errorf("%s[%d]: %w", place, i, err)
		}
		text, err := extensionText(e)
		if err != nil {
			return fmt.Errorf("%s[%d] (%v): %w", place, i, e.Id, err)
		}
		name := extensionName(e.Id)
		if e.Critical && name == e.Id.String() {
			return fmt.Errorf("%s[%d]: the critical extension %s is unknown", place, i, name)
		}
		if _, twice := a.Annotations[name]; twice {
			return fmt.Errorf("%s[%d]: the extension %s twice", place, i, name)
		}
		a.Annotations[name] = text
	}
	return nil
}

// extensionName returns the name of an extension, or its object identifier.
func extensionName(id asn1.ObjectIdentifier) string {
	if name := extensionNames[id.String()]; name != "" {
		return name
	}
	return id.String()
}

// extensionText returns an extension in words, such as "critical, CA, path length 0", where they say all of it, and
// otherwise the DER of its value in hex. It fails unless the value is DER.
func extensionText(e pkix.Extension) (text string, err error) {
	if err := bound.DER(e.Value, derLimits); err != nil {
		return "", err
	}
	elements, err := derElements(e.Value)
	if err != nil {
		return "", err
	}
	if len(elements) != 1 {
		return "", fmt.Errorf("%d elements instead of one", len(elements))
	}
	if err := checkDER(elements[0]); err != nil {
		return "", err
	}
	switch extensionName(e.Id) {
	case "basicConstraints":
		text, err = basicConstraints(e.Value)
	case "keyUsage":
		text, err = keyUsage(e.Value)
	case "extKeyUsage":
		text, err = extKeyUsage(e.Value)
	case "subjectAltName":
		text = hexUnless(e.Value, subjectAltName)
	case "nameConstraints":
		text = hexUnless(e.Value, nameConstraints)
	case "cRLDistributionPoints":
		text = hexUnless(e.Value, distributionPoints)
	case "authorityInfoAccess":
		text = hexUnless(e.Value, infoAccess)
	case "cRLNumber":
		text, err = number(elements[0], asn1.TagInteger)
	case "cRLReason":
		text, err = number(elements[0], asn1.TagEnum)
	default:
		text = hex.EncodeToString(e.Value)
	}
	if e.Critical {
		text = "critical, " + text
	}
	return text, err
}

// number returns a number in DER in hex, without its type, which must be that of tag.
func number(element asn1.RawValue, tag int) (string, error) {
	if element.Class != asn1.ClassUniversal || element.Tag != tag {
		return "", fmt.Errorf("an element of type %#x", element.FullBytes[0])
	}
	return hex.EncodeToString(element.Bytes), nil
}

func basicConstraints(der []byte) (string, error) {
	var c struct {
		CA     bool `asn1:"optional"`
		Length int  `asn1:"optional,default:-1"`
	}
	if err := decodeDER(der, &c, ""); err != nil {
		return "", err
	}
	switch {
	case c.Length < -1 || !c.CA && c.Length >= 0:
		return "", fmt.Errorf("path length %d", c.Length)
	case !c.CA:
		return "not a CA", nil
	case c.Length < 0:
		return "CA", nil
	}
	return fmt.Sprintf("CA, path length %d", c.Length), nil
}

func keyUsage(der []byte) (string, error) {
	var bits asn1.BitString
	if err := decodeDER(der, &bits, ""); err != nil {
		return "", err
	}
	// DER has no zero bits at the end of a list of named bits.
	if bits.BitLength == 0 || bits.BitLength > len(keyUsages) || bits.At(bits.BitLength-1) == 0 {
		return "", fmt.Errorf("%d bits that are not in the canonical encoding", bits.BitLength)
	}
	var names []string
	for i, name := range keyUsages {
		if bits.At(i) == 1 {
			names = append(names, name)
		}
	}
	return strings.Join(names, ", "), nil
}

func extKeyUsage(der []byte) (string, error) {
	var ids []asn1.ObjectIdentifier
	if err := decodeDER(der, &ids, ""); err != nil {
		return "", err
	}
	var names []string
	for _, id := range ids {
		name := purposes[id.String()]
		if name == "" {
			name = id.String()
		}
		names = append(names, name)
	}
	return strings.Join(names, ", "), nil
}
