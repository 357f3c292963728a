package payload

import (
	"encoding/json"
	"fmt"
)

// cosignType is the type of each document that cosign signs. Other signers of this format write another one.
const cosignType = "cosign container image signature"

// simpleSigning is a simple signing document, in the order that cosign encodes it.
type simpleSigning struct {
	Critical struct {
		Identity struct {
			Reference string `json:"docker-reference"`
		} `json:"identity"`
		Image struct {
			Digest string `json:"docker-manifest-digest"`
		} `json:"image"`
		Type string `json:"type"`
	} `json:"critical"`
	Optional map[string]string `json:"optional"` // the annotations; null if there are none
}

// readCosign reads a simple signing document, as cosign encodes it: in the order of simpleSigning, with null for no
// annotations. The artifact's name is the reference that the signer claims, and its annotations are the optional names.
// Since version 3, cosign signs a statement of the format dsse unless it is told otherwise.
func readCosign(data []byte) (*Artifact, error) {
	if name := firstName(data); name != "critical" && name != "optional" {
		return nil, errOther
	}
	var s simpleSigning
	if err := readJSON(data, &s, json.Marshal); err != nil {
		return nil, err
	}
	switch {
	case s.Critical.Type != cosignType:
		return nil, fmt.Errorf("critical.type: %.60q instead of %q", s.Critical.Type, cosignType)
	case !isDigest(s.Critical.Image.Digest):
		return nil, notDigest("critical.image.docker-manifest-digest", s.Critical.Image.Digest)
	case s.Optional != nil && len(s.Optional) == 0:
		return nil, fmt.Errorf("optional: {} instead of null")
	}
	return &Artifact{Format: Cosign, Digest: s.Critical.Image.Digest, Name: s.Critical.Identity.Reference,
		Annotations: s.Optional}, nil
}
