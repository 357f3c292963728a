package payload

import (
	"errors"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// A reader reads the bytes of one format. It fails with errOther if the bytes do not have the shape of that format at
// all, by how they begin, and otherwise with an error that begins with the place that it refuses, such as
// `protected header: unknown name "kid"`.
type reader struct {
	name string // for messages: the format, and its encoding if it has several
	read func(data []byte) (*Artifact, error)
}

// errOther means that bytes are not of the format of a reader.
var errOther = errors.New("the bytes are of another format")

// readers are all formats. Bytes have the shape of at most one of them.
var readers = []reader{
	{"notation in JWS", readJWS},
	{"notation in COSE", readCOSE},
	{"dsse", readDSSE},
	{"cosign", readCosign},
	{"x509", readX509},
	{"tuf", readTUF},
	{"layer-key", readLayerKey},
}

// Read returns what a signature of data is for. It fails with Denied if data has the shape of no format, as a bare hash
// has, and with Invalid if data has the shape of a format but is refused; the error then names the place.
func Read(data []byte) (*Artifact, error) {
	if len(data) > Limit {
		return nil, failure.New(failure.Invalid, "cannot read what is to be signed: %d bytes are more than %d",
			len(data), Limit).WithHint("sign a smaller document")
	}
	var artifact *Artifact
	var name string
	var refusal error
	for _, r := range readers {
		a, err := r.read(data)
		switch {
		case errors.Is(err, errOther):
		case err != nil:
			if refusal == nil {
				refusal = refuse(r.name, err)
			}
		case artifact != nil:
			return nil, refuse(r.name, errors.New("the bytes are "+name+" as well"))
		default:
			artifact, name = a, r.name
		}
	}
	switch {
	case artifact != nil:
		return artifact, nil
	case refusal != nil:
		return nil, refusal
	}
	return nil, failure.New(failure.Denied,
		"cannot read what is to be signed: no known format; a bare hash is never signed").
		WithHint("send the bytes to be signed themselves, in a format that the key is allowed to sign")
}

// refuse returns the error for bytes that have the shape of a format but are refused. It is short, whatever the bytes
// have that the cause quotes.
func refuse(name string, err error) error {
	hint := "sign with a client that writes this format in its canonical encoding"
	if errors.Is(err, errElements) || errors.Is(err, errDepth) {
		hint = "sign a document with fewer or less nested values"
	}
	return failure.New(failure.Invalid, "cannot read what is to be signed as %s: %.500s", name, err.Error()).WithHint(hint)
}
