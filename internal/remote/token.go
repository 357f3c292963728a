package remote

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/bound"
	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// tokenLimit is the length of the longest token, in bytes.
const tokenLimit = 16 << 10

// Variables that GitHub Actions sets in jobs with the permission "id-token: write"
// (https://docs.github.com/en/actions/reference/security/oidc).
const (
	githubURL   = "ACTIONS_ID_TOKEN_REQUEST_URL"
	githubToken = "ACTIONS_ID_TOKEN_REQUEST_TOKEN" //nolint:gosec // it is a name
)

// readToken returns a token for a broker: a new one for each request from GitHub, and what variable or file have now
// from others. audience is the address of the broker. Errors contain no token. It returns "" without a source.
func (c *client) readToken(ctx context.Context) (string, error) {
	var token string
	var err error
	switch source := c.credentials.Token; {
	case source.GitHub:
		token, err = c.askGitHub(ctx)
	case source.Variable != "":
		if token = os.Getenv(source.Variable); token == "" {
			err = failure.New(failure.NotFound, "the variable %s is not set", source.Variable).
				WithHint("write it under id_tokens in the job, with aud: " + c.address)
		}
	case source.File != "":
		var data []byte
		data, err = bound.ReadFile(source.File, tokenLimit)
		token = strings.TrimSpace(string(data))
	default:
		return "", nil
	}
	if err == nil {
		err = checkToken(token)
	}
	if err != nil {
		f := failure.From(err)
		if f.Hint == "" {
			f = failure.New(failure.FileKind(err), "%w", err).WithHint("check broker-token")
		}
		return "", failure.New(f.Kind, "cannot get a token for the broker at %s (%s): %w", c.address,
			c.credentials.Token, err).WithHint(f.Hint)
	}
	return token, nil
}

// checkToken fails unless a text has the form of a token: it goes into a header.
func checkToken(token string) error {
	other := func(r rune) bool {
		return (r|0x20 < 'a' || 'z' < r|0x20) && (r < '0' || '9' < r) && !strings.ContainsRune("-._~+/=", r)
	}
	if token == "" || len(token) > tokenLimit || strings.ContainsFunc(token, other) {
		return failure.New(failure.Invalid, "it is empty, too long, or no token (RFC 6750)").
			WithHint("name a source with a JSON Web Token (JWT) in broker-token")
	}
	return nil
}

// askGitHub gets a token from the endpoint of GitHub Actions. GitHub makes a new one each time.
func (c *client) askGitHub(ctx context.Context) (string, error) {
	address, err := url.Parse(os.Getenv(githubURL))
	if err != nil || address.Scheme != "https" || address.Host == "" || os.Getenv(githubToken) == "" {
		return "", failure.New(failure.NotFound, "%s and %s are not set", githubURL, githubToken).
			WithHint("give the job the permission id-token: write")
	}
	query := address.Query()
	query.Set("audience", c.address)
	address.RawQuery = query.Encode()
	for attempt := 1; ; attempt++ {
		token, again, err := c.askGitHubOnce(ctx, address)
		if err == nil || !again || attempt == attempts || c.pause(ctx, backoff(attempt)) != nil {
			return token, err
		}
	}
}

// askGitHubOnce makes one request. again reports whether another may succeed.
func (c *client) askGitHubOnce(ctx context.Context, address *url.URL) (token string, again bool, err error) {
	fail := func(format string, args ...any) error {
		return failure.New(failure.Unavailable, "GitHub gives no token: "+format, args...).
			WithHint("run the job again, and see https://www.githubstatus.com if that does not help")
	}
	//nolint:gosec // the runner says where its endpoint is
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address.String(), http.NoBody)
	if err != nil {
		return "", false, fail("%s is no URL", githubURL)
	}
	request.Header.Set("Authorization", "Bearer "+os.Getenv(githubToken))
	request.Header.Set("Accept", "application/json; api-version=2.0")
	response, err := c.github.Do(request) //nolint:gosec // as above
	if err != nil {
		return "", true, fail("%w", withoutURL(err))
	}
	defer response.Body.Close()
	data, err := io.ReadAll(io.LimitReader(response.Body, 2*tokenLimit+1))
	if err != nil {
		return "", true, fail("%w", err)
	}
	if response.StatusCode != http.StatusOK {
		return "", response.StatusCode >= 500 || response.StatusCode == http.StatusTooManyRequests,
			fail("HTTP status %d", response.StatusCode)
	}
	var answer struct {
		Value string `json:"value"`
	}
	if err := bound.JSON(data, bound.Limits{Bytes: 2 * tokenLimit, Depth: 4, Elements: 100}); err != nil {
		return "", false, fail("%w", err)
	}
	if err := json.Unmarshal(data, &answer); err != nil || answer.Value == "" {
		return "", false, fail("its answer has no value")
	}
	return answer.Value, false, nil
}

// newGitHub returns the client for GitHub's endpoint.
func newGitHub() *http.Client {
	return &http.Client{
		Transport: &http.Transport{Proxy: http.ProxyFromEnvironment, TLSHandshakeTimeout: 10 * time.Second,
			MaxResponseHeaderBytes: headerLimit, DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// withoutURL returns the cause of an error of net/http, without the URL.
func withoutURL(err error) error {
	var outer *url.Error
	if errors.As(err, &outer) {
		return outer.Err
	}
	return err
}

// Credentials says how this process authenticates itself to the broker that the settings name. It fails if a file, a
// token or a certificate is missing or cannot be used.
func (b *Backend) Credentials(ctx context.Context, s *config.Settings) (string, error) {
	if s.Credentials == nil {
		return fmt.Sprintf("user id %d, as the socket tells the broker", os.Geteuid()), nil
	}
	c, err := b.connections.to(s)
	if err != nil {
		return "", err
	}
	defer c.release()
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	token, err := c.readToken(ctx)
	if err != nil {
		return "", err
	}
	var all []string
	if token != "" {
		all = append(all, fmt.Sprintf("a token of %d bytes (%s)", len(token), s.Credentials.Token))
	}
	if s.Credentials.Certificate != "" {
		all = append(all, "the certificate "+s.Credentials.Certificate)
	}
	if len(all) == 0 {
		return "", failure.New(failure.NotFound, "there is neither a token nor a certificate for the broker at %s",
			c.address).WithHint("set broker-token, or broker-certificate and broker-key")
	}
	return strings.Join(all, ", and "), nil
}
