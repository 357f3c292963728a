package pkcs11

import (
	"fmt"
	"strings"

	"github.com/miekg/pkcs11"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// search returns at most limit objects that a template matches. A module that hands over fewer than it was asked for
// has no more, so the usual search takes three calls.
func (t *Token) search(template []*pkcs11.Attribute, limit int) ([]objectHandle, error) {
	if err := t.calls.findInit(t.sessions.first, template); err != nil {
		return nil, err
	}
	var objects []objectHandle
	var err error
	for len(objects) < limit {
		var batch []objectHandle
		room := min(limit-len(objects), 256)
		if batch, err = t.calls.find(t.sessions.first, room); err != nil {
			break
		}
		objects = append(objects, batch...)
		if len(batch) < room {
			break
		}
	}
	if final := t.calls.findFinal(t.sessions.first); err == nil {
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

// privateKey finds the one private key that the reference names. It logs in, since private keys are private objects.
func (t *Token) privateKey() (objectHandle, error) {
	if t.isNetHSM() && unnamed(t.settings.Key) {
		return 0, failure.New(failure.Invalid, "no key on %s is named", t.name()).
			WithHint("name the key by its ID, as object; 'notation-hsm key list' reads them all")
	}
	found, err := t.search(t.selector(pkcs11.CKO_PRIVATE_KEY, t.settings.Key), 2)
	switch {
	case err != nil:
		return 0, t.failed(err, "can't search %s for key %s", t.name(), keyName(t.settings.Key))
	case len(found) == 1:
		return found[0], nil
	}
	if t.isNetHSM() { // to list what there is takes long
		return 0, failure.New(failure.Invalid, "there is no key %s on %s for this user", keyName(t.settings.Key), t.name()).
			WithHint("check the key ID and the operator's namespace; 'notation-hsm key list' reads all keys")
	}
	all, err := t.inventory(found)
	if err != nil {
		return 0, err
	}
	if len(found) > 1 {
		return 0, failure.New(failure.Invalid,
			"more than one key on %s matches %s:%s", t.name(), keyName(t.settings.Key), all).
			WithHint("name one by its id, as in the URIs shown")
	}
	if all == "" {
		return 0, failure.New(failure.Invalid,
			"there is no key %s on %s, nor any other private key that this user can see", keyName(t.settings.Key), t.name()).
			WithHint("make one with 'notation-hsm key generate'")
	}
	return 0, failure.New(failure.Invalid, "there is no key %s on %s; it has:%s",
		keyName(t.settings.Key), t.name(), all).
		WithHint("use one of these")
}

// inventoryLimit is how many keys an error lists before it says that there are more.
const inventoryLimit = 20

// inventory lists private keys for an error: those that match the reference if any did, else whatever is there.
func (t *Token) inventory(matching []objectHandle) (string, error) {
	reference := config.URI{}
	if len(matching) > 0 {
		reference = t.settings.Key
	}
	objects, err := t.search(t.selector(pkcs11.CKO_PRIVATE_KEY, reference), inventoryLimit+1)
	if err != nil {
		return "", t.failed(err, "can't list the keys of %s", t.name())
	}
	var lines strings.Builder
	for i, object := range objects {
		if i == inventoryLimit {
			lines.WriteString("\n  ... and more; see 'notation-hsm key list'")
			break
		}
		values, err := t.calls.attributes(t.sessions.first, object, pkcs11.CKA_LABEL, pkcs11.CKA_ID)
		if err != nil {
			return "", t.failed(err, "can't read a key of %s", t.name())
		}
		fmt.Fprintf(&lines, "\n  %s", config.URI{Token: t.info.label, ID: values[1], Object: string(values[0])})
	}
	return lines.String(), nil
}

// keyName is the key reference in the words of an error.
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
