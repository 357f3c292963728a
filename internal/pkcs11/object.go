package pkcs11

import (
	"fmt"
	"strings"

	"github.com/miekg/pkcs11"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// searchBatch is how many objects one C_FindObjects is asked for.
const searchBatch = 256

// search returns at most limit objects that a template matches. A module that hands over fewer than it was asked for
// has no more, so the usual search takes three calls.
func (s *session) search(template []*pkcs11.Attribute, limit int) ([]objectHandle, error) {
	if err := s.calls.findInit(s.handle, template); err != nil {
		return nil, err
	}
	var objects []objectHandle
	var err error
	for len(objects) < limit {
		var batch []objectHandle
		room := min(limit-len(objects), searchBatch)
		if batch, err = s.calls.find(s.handle, room); err != nil {
			break
		}
		objects = append(objects, batch...)
		if len(batch) < room {
			break
		}
	}
	if final := s.calls.findFinal(s.handle); err == nil {
		err = final
	}
	return objects, err
}

// selector is the template of the objects that belong to a key reference: its label and id, exactly. The module does
// the search, so the number of calls does not grow with the number of objects on the token.
func (t *Token) selector(class uint, uri config.URI) []*pkcs11.Attribute {
	uri = t.byKeyID(uri)
	template := []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_CLASS, class)}
	if uri.Object != "" {
		template = append(template, pkcs11.NewAttribute(pkcs11.CKA_LABEL, uri.Object))
	}
	if len(uri.ID) > 0 {
		template = append(template, pkcs11.NewAttribute(pkcs11.CKA_ID, uri.ID))
	}
	return template
}

// privateKey returns the one private key that a reference names. It fails with NotFound for none, and Invalid for
// several.
func (s *session) privateKey(name config.URI) (objectHandle, error) {
	if s.isNetHSM() && unnamed(name) {
		return 0, failure.New(failure.Invalid, "no key on %s is named", s.name()).
			WithHint("name the key by its ID, as object; 'notation-hsm key list' reads them all")
	}
	found, err := s.search(s.selector(pkcs11.CKO_PRIVATE_KEY, name), 2)
	switch {
	case err != nil:
		return 0, s.failed(err, "cannot search %s for key %s", s.name(), keyName(name))
	case len(found) == 1:
		return found[0], nil
	}
	if err := s.checkLogin(); err != nil {
		return 0, err
	}
	if s.isNetHSM() { // to list what there is takes long
		return 0, failure.New(failure.NotFound, "there is no key %s on %s for this user", keyName(name), s.name()).
			WithHint("check the key ID and the operator's namespace; 'notation-hsm key list' reads all keys")
	}
	all, err := s.inventory(name, found)
	if err != nil {
		return 0, err
	}
	if len(found) > 1 {
		return 0, failure.New(failure.Invalid,
			"more than one key on %s matches %s:%s", s.name(), keyName(name), all).
			WithHint("name one by its id, as in the URIs shown")
	}
	if all == "" {
		return 0, failure.New(failure.NotFound,
			"there is no key %s on %s, nor any other private key that this user can see", keyName(name), s.name()).
			WithHint("make one with 'notation-hsm key generate'")
	}
	return 0, failure.New(failure.NotFound, "there is no key %s on %s; it has:%s",
		keyName(name), s.name(), all).
		WithHint("use one of these")
}

// inventoryLimit is how many keys an error lists before it says that there are more.
const inventoryLimit = 20

// inventory lists private keys for an error: those that match the name if any did, otherwise all.
func (s *session) inventory(name config.URI, matching []objectHandle) (string, error) {
	reference := config.URI{}
	if len(matching) > 0 {
		reference = name
	}
	objects, err := s.search(s.selector(pkcs11.CKO_PRIVATE_KEY, reference), inventoryLimit+1)
	if err != nil {
		return "", s.failed(err, "cannot list the keys of %s", s.name())
	}
	var lines strings.Builder
	for i, object := range objects {
		if i == inventoryLimit {
			lines.WriteString("\n  ... and more; see 'notation-hsm key list'")
			break
		}
		values, err := s.calls.attributes(s.handle, object, pkcs11.CKA_LABEL, pkcs11.CKA_ID)
		if err != nil {
			return "", s.failed(err, "cannot read a key of %s", s.name())
		}
		fmt.Fprintf(&lines, "\n  %s", config.URI{Token: s.info.label, ID: values[1], Object: string(values[0])})
	}
	return lines.String(), nil
}

// keyName returns the name in an error of the key that a reference names.
func keyName(uri config.URI) string {
	switch {
	case uri.Object != "" && len(uri.ID) > 0:
		return fmt.Sprintf("%q with id %X", uri.Object, uri.ID)
	case uri.Object != "":
		return fmt.Sprintf("%q", uri.Object)
	case len(uri.ID) > 0:
		return fmt.Sprintf("with id %X", uri.ID)
	}
	return "(the URI names no object)"
}
