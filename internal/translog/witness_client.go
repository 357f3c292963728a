package translog

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/url"
	"strings"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// WitnessClient asks one witness for cosignatures (C2SP tlog-witness). It is not safe for concurrent use.
type WitnessClient struct {
	witness *Witness
	url     string // of add-checkpoint
	client  *http.Client
	size    int64 // of the newest checkpoint that the witness has cosigned, as far as it is known
}

const (
	maxAnswer    = 64 << 10 // bytes of an answer with cosignatures
	maxTreeProof = 63       // hashes
	maxURL       = 2048     // bytes
)

// NewWitnessClient returns a client of the witness at a submission prefix: an https URL, or http on loopback. It fails
// with Invalid.
func NewWitnessClient(w *Witness, prefix string) (*WitnessClient, error) {
	u, err := url.Parse(prefix)
	local := err == nil && (u.Hostname() == "localhost" || net.ParseIP(u.Hostname()).IsLoopback())
	if err != nil || len(prefix) > maxURL || u.Scheme != "https" && (u.Scheme != "http" || !local) || u.Hostname() == "" ||
		u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil, failure.New(failure.Invalid, "%.200q is not the URL of a witness", prefix).
			WithHint("use the submission prefix that its operator publishes, such as https://witness.example.com/")
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12}
	transport.MaxResponseHeaderBytes = 64 << 10
	return &WitnessClient{witness: w, url: u.JoinPath("add-checkpoint").String(), client: &http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

// Witness returns the witness that is asked.
func (c *WitnessClient) Witness() *Witness { return c.witness }

// Cosign has the witness cosign a signed checkpoint of the log that has the tiles, and returns its cosignature, which
// was verified. It sends one request, and another one when the witness has cosigned another size than is known. It
// fails with Conflict when the witness has cosigned a checkpoint that this one does not continue, with NotFound or
// Denied when it does not know the log or its key, and with Unavailable when it may answer later. The caller sets a
// deadline.
func (c *WitnessClient) Cosign(ctx context.Context, signed []byte, tiles Tiles) (Cosignature, error) {
	cosignature, err := c.cosign(ctx, signed, tiles)
	if err != nil {
		f := failure.From(err)
		return Cosignature{}, failure.New(f.Kind, "cannot get a cosignature of the witness %s: %w", c.witness.name, err).
			WithHint(f.Hint)
	}
	return cosignature, nil
}

func (c *WitnessClient) cosign(ctx context.Context, signed []byte, tiles Tiles) (Cosignature, error) {
	text, _, _ := strings.Cut(string(signed), "\n\n")
	checkpoint, err := parseText(text + "\n")
	if err != nil {
		return Cosignature{}, err
	}
	if c.size > checkpoint.Size {
		c.size = 0 // asks for the size
	}
	answer, err := c.add(ctx, signed, tiles, c.size, checkpoint.Size)
	var other *sizeError
	if errors.As(err, &other) && other.size != c.size && other.size <= checkpoint.Size {
		c.size = other.size
		answer, err = c.add(ctx, signed, tiles, c.size, checkpoint.Size)
	}
	if errors.As(err, &other) {
		return Cosignature{}, failure.New(failure.Conflict, "it has cosigned another log of %d entries: this one has %d",
			other.size, checkpoint.Size).
			WithHint("compare the log with a copy up to that size: one of the two was rewritten, or entries were lost")
	}
	if err != nil {
		return Cosignature{}, err
	}
	cosignatures, err := Cosigned([]byte(text+"\n\n"+string(answer)), []*Witness{c.witness})
	if err == nil && len(cosignatures) == 0 {
		err = failure.New(failure.Denied, "its answer has no signature of its key").
			WithHint("check the key of the witness in the config file")
	}
	if err != nil {
		return Cosignature{}, err
	}
	c.size = checkpoint.Size
	return cosignatures[0], nil
}

// sizeError says that a witness has cosigned a checkpoint of another size.
type sizeError struct{ size int64 }

// Error returns the size.
func (e *sizeError) Error() string { return fmt.Sprintf("it has cosigned %d entries", e.size) }

// add sends a checkpoint with the proof that it continues the one of the size older. It returns the lines of the
// answer.
func (c *WitnessClient) add(ctx context.Context, signed []byte, tiles Tiles, older, size int64) ([]byte, error) {
	proof, err := ProveTree(ctx, tiles, older, size)
	if err != nil {
		return nil, err
	}
	if len(proof) > maxTreeProof {
		return nil, failure.New(failure.Unsupported, "the proof has %d hashes", len(proof))
	}
	var body bytes.Buffer
	fmt.Fprintf(&body, "old %d\n", older)
	for _, hash := range proof {
		body.WriteString(base64.StdEncoding.EncodeToString(hash[:]) + "\n")
	}
	body.WriteString("\n")
	body.Write(signed)
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, c.url, &body) //nolint:gosec // see client.Do
	if err != nil {
		return nil, failure.New(failure.Invalid, "cannot make the request: %w", err)
	}
	request.Header.Set("Content-Type", "text/plain; charset=utf-8")
	request.Header.Set("User-Agent", "hsm-broker")
	response, err := c.client.Do(request) //nolint:gosec // the operator names the host, and redirects are not followed
	if err != nil {
		return nil, failure.New(failure.Unavailable, "%w", err).WithHint("check the URL of the witness and the connection")
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer+1))
	if err != nil {
		return nil, failure.New(failure.Unavailable, "%w", err).WithHint("check the connection to the witness")
	}
	if len(answer) > maxAnswer {
		return nil, failure.New(failure.Invalid, "its answer has more than %d bytes", maxAnswer)
	}
	return answer, refused(response, answer)
}

// refused returns why a witness does not cosign, by its answer.
func refused(response *http.Response, answer []byte) error {
	said := fmt.Sprintf("it answered %.50q: %.100q", response.Status, answer)
	switch code := response.StatusCode; {
	case code == http.StatusOK:
		return nil
	case code == http.StatusConflict:
		media, _, _ := mime.ParseMediaType(response.Header.Get("Content-Type"))
		line, ended := strings.CutSuffix(string(answer), "\n")
		size, err := parseSize(line)
		if media != "text/x.tlog.size" || !ended || err != nil {
			return failure.New(failure.Conflict, "%s", said)
		}
		return &sizeError{size}
	case code == http.StatusNotFound:
		return failure.New(failure.NotFound, "%s", said).
			WithHint("have the witness's operator add the log: 'hsm-broker log key' prints its verifier key")
	case code == http.StatusForbidden:
		return failure.New(failure.Denied, "%s", said).
			WithHint("have the witness's operator add the log's key: 'hsm-broker log key' prints it")
	case code == http.StatusUnprocessableEntity:
		return failure.New(failure.Conflict, "%s", said).
			WithHint("verify the log: the checkpoint does not continue the one that the witness has cosigned")
	case code >= 500 || code == http.StatusTooManyRequests:
		return failure.New(failure.Unavailable, "%s", said).WithHint("wait: the broker asks again")
	default:
		return failure.New(failure.Invalid, "%s", said).WithHint("check the URL of the witness in the config file")
	}
}

// Merge returns a signed checkpoint with cosignatures of it after its signatures.
func Merge(signed []byte, cosignatures []Cosignature) []byte {
	merged := bytes.Clone(signed)
	for _, one := range cosignatures {
		merged = append(merged, one.line...)
	}
	return merged
}
