package image

import (
	"fmt"
	"testing"

	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

// TestContainerdDecoderBroker has containerd open layers through an agent, whose socket the node's config file names. A
// node needs neither the module nor a PIN then. When the agent has ended, the pull is refused.
func TestContainerdDecoderBroker(t *testing.T) {
	softhsmtest.Parallel(t)
	n := newNode(t, "")
	agent := softhsmtest.StartAgent(t, n.token, "--formats", "layer-key")
	softhsmtest.Write(t, n.settings, fmt.Sprintf("broker: unix:%s\ntimeout: %s\n", agent.Socket, softhsmtest.Patience))
	for i, wrap := range []wrap{wrapHSM(n.public), wrapJWE(n.public)} {
		var layers []*layer
		for j, mediaType := range layerTypes {
			layers = append(layers, newLayer(t, mediaType, fmt.Sprintf("%d-%d.txt", i, j), secret()).encrypt(t))
		}
		if err := n.PullCRI(t, n.push(t, fmt.Sprintf("app%d", i), wrap, layers...)); err != nil {
			t.Fatalf("%v\n%s", err, n.Log())
		}
	}
	agent.Stop()
	image := n.push(t, "late", wrapHSM(n.public), newLayer(t, layerTypes[0], "late.txt", secret()).encrypt(t))
	if err := n.PullCRI(t, image); err == nil {
		t.Error("a layer was opened without the agent")
	}
}
