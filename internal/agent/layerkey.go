package agent

import (
	"context"
	"net/http"

	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/httpapi"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
	"github.com/notation-hsm/notation-hsm/internal/layerkey"
	"github.com/notation-hsm/notation-hsm/internal/payload"
)

func (a *Agent) postLayerKey(r *http.Request) (*brokerapi.LayerKey, int, error) {
	var request brokerapi.LayerKeyRequest
	if err := httpapi.ReadJSON(r, &request); err != nil {
		return nil, 0, err
	}
	options, err := a.unwrap(r.Context(), r.PathValue("key"), request.JWE)
	if err != nil {
		return nil, 0, err
	}
	return &brokerapi.LayerKey{Options: options}, http.StatusOK, nil
}

// unwrap returns the options of an image layer, unwrapped from a JWE with the key that a caller names. What else a
// ciphertext holds is not returned: the JWE authenticates its content, which has to be the options of a layer.
func (a *Agent) unwrap(ctx context.Context, name string, jwe []byte) ([]byte, error) {
	artifact, err := payload.Read(jwe)
	if err != nil {
		return nil, err
	}
	if artifact.Format != payload.LayerKey {
		return nil, failure.New(failure.Denied, "cannot unwrap a layer key: the bytes are of the format %s", artifact.Format).
			WithHint("send the JWE of an encrypted image layer")
	}
	if err := a.allow(artifact); err != nil {
		return nil, err
	}
	packet, err := layerkey.ParseJWE(jwe)
	if err != nil {
		return nil, err
	}
	s, err := a.session()
	if err != nil {
		return nil, err
	}
	h, err := s.find(ctx, name)
	if err != nil {
		return nil, err
	}
	if a.options.Confirm != nil {
		if err := a.options.Confirm(ctx, name, artifact); err != nil {
			return nil, err
		}
	}
	options, err := h.Use(ctx, func(k keystore.Key) ([]byte, error) { return packet.Open(ctx, name, k) })
	if err == nil {
		logUse(ctx, "unwrapped", name, artifact, jwe)
	}
	return options, err
}
