package notaryv1

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"

	"oras.land/oras-go/v2/registry/remote/auth"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// Server is a Notary server.
type Server struct {
	URL    string       // such as https://notary.example.com
	Client *http.Client // nil for one without settings
	// Credential returns the credentials for a server, HOST or HOST:PORT. The server says in its answer where they are
	// exchanged for a token; Docker Hub's is another host. It is not asked over HTTP to another machine. nil: none.
	Credential auth.CredentialFunc
}

// requestTimeout is the time limit of one request where the client has none.
const requestTimeout = time.Minute

// FromServer reads a repository from a Notary server.
func FromServer(ctx context.Context, s Server, gun string, pin Pin) (*Repository, error) {
	if err := CheckGUN(gun); err != nil {
		return nil, err
	}
	base, err := url.Parse(s.URL)
	if err != nil || base.Scheme != "https" && base.Scheme != "http" || base.Host == "" || base.RawQuery != "" ||
		base.Fragment != "" || base.User != nil {
		return nil, failure.New(failure.Invalid, "cannot use Notary server %.100q: it is not an HTTPS or HTTP URL", s.URL).
			WithHint("name it as https://HOST")
	}
	client := http.Client{}
	if s.Client != nil {
		client = *s.Client
	}
	if client.Timeout == 0 {
		client.Timeout = requestTimeout
	}
	if client.Transport == nil {
		client.Transport = http.DefaultTransport
	}
	client.Transport = pullOnly{client.Transport}
	client.CheckRedirect = stayOnHost
	// Without a cache, the server is asked for a token for each file.
	authorized := &auth.Client{Client: &client, Credential: s.Credential, Cache: auth.NewCache()}
	if base.Scheme == "http" && !isLoopback(base.Hostname()) {
		authorized.Credential = nil
	}
	return readRepository(ctx, &server{authorized, base, gun}, gun, pin)
}

func isLoopback(host string) bool {
	address, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && address.IsLoopback()
}

// refusal says that a server asked for something that it does not get.
type refusal struct{ message string }

func (r *refusal) Error() string { return r.message }

// stayOnHost refuses redirects to another host.
func stayOnHost(request *http.Request, via []*http.Request) error {
	if len(via) > 3 || request.URL.Host != via[0].URL.Host || request.URL.Scheme != via[0].URL.Scheme {
		return &refusal{fmt.Sprintf("it redirects to %.200q", request.URL.Redacted())}
	}
	return nil
}

// pullOnly refuses to ask for a token for more than reading. Otherwise a server could have the user's credentials
// exchanged for a token that lets its bearer write to the registry, and be sent that token.
type pullOnly struct{ transport http.RoundTripper }

var pullScope = regexp.MustCompile(`^repository:[A-Za-z0-9._/:-]+:pull$`)

func (p pullOnly) RoundTrip(request *http.Request) (*http.Response, error) {
	scopes := request.URL.Query()["scope"]
	if request.GetBody != nil { // a form
		body, err := request.GetBody()
		if err != nil {
			return nil, err
		}
		data, err := io.ReadAll(body)
		if err != nil {
			return nil, err
		}
		form, err := url.ParseQuery(string(data))
		if err != nil {
			return nil, err
		}
		scopes = append(scopes, form["scope"]...)
	}
	for _, scope := range scopes {
		for one := range strings.FieldsSeq(scope) {
			if !pullScope.MatchString(one) {
				return nil, &refusal{fmt.Sprintf("it asks for a token for %.200q", one)}
			}
		}
	}
	return p.transport.RoundTrip(request)
}

// server is a repository on a Notary server: /v2/GUN/_trust/tuf/ROLE.json.
type server struct {
	client *auth.Client
	base   *url.URL
	gun    string
}

func (s *server) read(ctx context.Context, want file, limit int) ([]byte, error) {
	name := want.role
	if want.version > 0 {
		name = strconv.FormatInt(want.version, 10) + "." + name
	}
	if want.sum != "" {
		name += "." + want.sum
	}
	address := s.base.JoinPath("v2", s.gun, "_trust", "tuf", name+".json").String()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, failure.New(failure.Invalid, "cannot request %.200q: %w", address, err)
	}
	response, err := s.client.Do(request)
	var refused *refusal
	if errors.As(err, &refused) {
		return nil, failure.New(failure.Denied, "cannot use Notary server %q: %w", s.base.Host, refused).
			WithHint("compare the server's address with what the registry's owner says")
	}
	if err != nil {
		kind := failure.Unavailable
		if errors.Is(err, context.DeadlineExceeded) {
			kind = failure.Timeout
		}
		return nil, failure.New(kind, "cannot reach Notary server: %w", err).
			WithHint("if the service was switched off, read the trust folder of a machine that used it")
	}
	defer response.Body.Close()
	switch response.StatusCode {
	case http.StatusOK:
	case http.StatusNotFound:
		return nil, failure.New(failure.NotFound, "cannot find metadata of %q: the Notary server has no %s.json", s.gun,
			name).
			WithHint("name the repository as 'docker trust inspect' does, such as docker.io/example/app")
	case http.StatusUnauthorized, http.StatusForbidden:
		return nil, failure.New(failure.Denied, "cannot read metadata of %q: the Notary server answers %d", s.gun,
			response.StatusCode).
			WithHint("log in to the registry with an account that may pull this repository")
	default:
		return nil, failure.New(failure.Unavailable, "cannot read metadata of %q: the Notary server answers %d", s.gun,
			response.StatusCode)
	}
	data, err := readLimited(response.Body, limit)
	if err != nil {
		return nil, failure.New(failure.Unavailable, "cannot read %s.json of %q from the Notary server: %w", name, s.gun,
			err)
	}
	return data, nil
}
