package payload

import (
	"encoding/asn1"
	"encoding/hex"
	"fmt"
	"net"
	"strings"
)

// hexUnless returns an extension in words, or, if they do not say all of it, its DER in hex.
func hexUnless(der []byte, words func([]byte) (string, bool)) string {
	if text, complete := words(der); complete {
		return text
	}
	return hex.EncodeToString(der)
}

// generalName returns a name in words, such as `dns:"example.com"` or "ip:192.0.2.0/24". It is incomplete for the name
// of a directory and other kinds.
func generalName(name asn1.RawValue) (text string, complete bool) {
	kind := map[byte]string{0x81: "email", 0x82: "dns", 0x86: "uri"}[name.FullBytes[0]]
	size := len(name.Bytes)
	switch {
	case kind != "":
		return fmt.Sprintf("%s:%q", kind, name.Bytes), true
	case name.FullBytes[0] != 0x87:
		return "", false
	case size == net.IPv4len || size == net.IPv6len:
		return "ip:" + net.IP(name.Bytes).String(), true
	case size == 2*net.IPv4len || size == 2*net.IPv6len:
		network := net.IPNet{IP: name.Bytes[:size/2], Mask: name.Bytes[size/2:]}
		return "ip:" + network.String(), true
	}
	return "", false
}

// generalNames returns names in words after a prefix each.
func generalNames(prefix string, names []asn1.RawValue) (words []string, complete bool) {
	for _, name := range names {
		text, complete := generalName(name)
		if !complete {
			return nil, false
		}
		words = append(words, prefix+text)
	}
	return words, true
}

func subjectAltName(der []byte) (string, bool) {
	var names []asn1.RawValue
	if decodeDER(der, &names, "") != nil {
		return "", false
	}
	words, complete := generalNames("", names)
	return strings.Join(words, ", "), complete
}

func nameConstraints(der []byte) (string, bool) {
	type subtree struct{ Base asn1.RawValue }
	var c struct {
		Permitted []subtree `asn1:"optional,tag:0"`
		Excluded  []subtree `asn1:"optional,tag:1"`
	}
	if decodeDER(der, &c, "") != nil {
		return "", false
	}
	bases := func(subtrees []subtree) (names []asn1.RawValue) {
		for _, s := range subtrees {
			names = append(names, s.Base)
		}
		return names
	}
	permitted, complete := generalNames("permit ", bases(c.Permitted))
	excluded, alsoComplete := generalNames("exclude ", bases(c.Excluded))
	return strings.Join(append(permitted, excluded...), ", "), complete && alsoComplete
}

func distributionPoints(der []byte) (string, bool) {
	var points []struct {
		Point struct {
			Names []asn1.RawValue `asn1:"tag:0"`
		} `asn1:"tag:0"`
	}
	if decodeDER(der, &points, "") != nil {
		return "", false
	}
	var all []string
	for _, p := range points {
		words, complete := generalNames("", p.Point.Names)
		if !complete {
			return "", false
		}
		all = append(all, strings.Join(words, " or ")) // the same list at several places
	}
	return strings.Join(all, ", "), true
}

func infoAccess(der []byte) (string, bool) {
	var places []struct {
		Method   asn1.ObjectIdentifier
		Location asn1.RawValue
	}
	if decodeDER(der, &places, "") != nil {
		return "", false
	}
	methods := map[string]string{"1.3.6.1.5.5.7.48.1": "OCSP ", "1.3.6.1.5.5.7.48.2": "caIssuers "}
	var all []string
	for _, p := range places {
		text, complete := generalName(p.Location)
		method := methods[p.Method.String()]
		if !complete || method == "" {
			return "", false
		}
		all = append(all, method+text)
	}
	return strings.Join(all, ", "), true
}
