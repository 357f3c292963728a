package softhsmtest

import (
	"bufio"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
)

// SigningInput returns what Notation has a key sign for an image, in JWS: of another digest for each number. algorithm
// is a name in JWS, such as PS256.
func SigningInput(algorithm string, number int) []byte {
	header, _ := json.Marshal(map[string]any{ // strings always marshal, their names sorted
		"alg": algorithm, "crit": []string{"io.cncf.notary.signingScheme"},
		"cty":                          "application/vnd.cncf.notary.payload.v1+json",
		"io.cncf.notary.signingScheme": "notary.x509",
		"io.cncf.notary.signingTime":   time.Now().UTC().Format(time.RFC3339),
	})
	content, _ := json.Marshal(map[string]any{"targetArtifact": map[string]any{
		"digest":    fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(strconv.Itoa(number)))),
		"mediaType": "application/vnd.oci.image.manifest.v1+json", "size": 525,
	}})
	encode := base64.RawURLEncoding.EncodeToString
	return []byte(encode(header) + "." + encode(content))
}

// An AgentConn is a connection to an agent for one request after another. It costs the client little, so that
// measurements are of the agent.
type AgentConn struct {
	conn net.Conn
	in   *bufio.Reader
}

// DialAgent connects to an agent's socket.
func DialAgent(socket string) (*AgentConn, error) {
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return nil, err
	}
	return &AgentConn{conn, bufio.NewReader(conn)}, nil
}

// Close ends the connection.
func (a *AgentConn) Close() error { return a.conn.Close() }

// SignatureRequest returns a request for a signature, as it is sent. algorithm is a name of the API.
func SignatureRequest(key, algorithm string, payload []byte) []byte {
	body, _ := json.Marshal(brokerapi.SignatureRequest{Payload: payload, Algorithm: algorithm}) // bytes always marshal
	const form = "POST %s HTTP/1.1\r\nHost: broker\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
	return fmt.Appendf(nil, form, brokerapi.SignaturesPath(key), len(body), body)
}

// Ask sends a request and returns the status and the body of the answer.
func (a *AgentConn) Ask(request []byte) (status int, body []byte, err error) {
	if _, err := a.conn.Write(request); err != nil {
		return 0, nil, err
	}
	length := 0
	for first := true; ; first = false {
		line, err := a.in.ReadSlice('\n')
		if err != nil {
			return 0, nil, err
		}
		text := strings.TrimRight(string(line), "\r\n")
		switch {
		case first:
			if _, err := fmt.Sscanf(text, "HTTP/1.1 %d", &status); err != nil {
				return 0, nil, err
			}
		case text == "":
			body = make([]byte, length)
			_, err := io.ReadFull(a.in, body)
			return status, body, err
		default:
			if value, ok := strings.CutPrefix(text, "Content-Length: "); ok {
				if length, err = strconv.Atoi(value); err != nil {
					return 0, nil, err
				}
			}
		}
	}
}
