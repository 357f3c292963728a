package nethsmtest

import (
	"context"
	"errors"
	"io"
	"mime"
	"net/http"
	"slices"
	"strings"
)

// maxBody is the longest body of a request, as on a real NetHSM.
const maxBody = 1 << 20

// call is a request for an operation.
type call struct {
	server    *Server
	state     *state
	operation *operation
	request   *http.Request
	body      []byte
	params    map[string]string // from the path
	user      *user             // nil for the public
}

func (s *Server) serveHTTP(w http.ResponseWriter, r *http.Request) {
	entry := &Request{Method: r.Method, Path: strings.TrimPrefix(r.URL.RequestURI(), base)}
	entry.User, _, _ = r.BasicAuth()
	s.mu.Lock()
	if s.http == nil { // a request that came while Stop was under way
		s.mu.Unlock()
		cutConnection()
	}
	serving := s.serving
	serving.Add(1)
	defer serving.Done()
	s.requests = append(s.requests, entry)
	allowInvalid := s.invalid > 0
	s.mu.Unlock()

	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if _, large := errors.AsType[*http.MaxBytesError](err); large {
		body = nil
	} else if err != nil {
		cutConnection()
	}
	tooLarge := err != nil

	if !allowInvalid && !tooLarge {
		s.contract.request(r, body)
	}
	fault := s.fault(r.Method, strings.TrimPrefix(r.URL.Path, base))
	if fault != nil && fault.effect.before != nil && fault.effect.before(w, fault, r) {
		return
	}
	result, role := s.answer(r, body, tooLarge)
	s.mu.Lock()
	entry.Role = role
	s.mu.Unlock()
	if fault != nil && fault.effect.after != nil {
		fault.effect.after()
	}
	s.contract.response(r, body, result)
	s.mu.Lock()
	entry.Status = result.status
	s.mu.Unlock()
	result.write(w)
	if result.cut {
		// which waits for this request
		go s.stop(func(server *http.Server) error { return server.Shutdown(context.Background()) })
	}
}

func (r *reply) write(w http.ResponseWriter) {
	for name, values := range r.header() {
		w.Header()[name] = values
	}
	w.WriteHeader(r.status)
	_, _ = w.Write(r.body) //nolint:gosec // JSON, PEM or bytes, for no browser
}

func (r *reply) header() http.Header {
	h := http.Header{}
	if r.contentType != "" {
		h.Set("Content-Type", r.contentType)
	}
	if r.location != "" {
		h.Set("Location", r.location)
	}
	if r.status == http.StatusUnauthorized {
		h.Set("WWW-Authenticate", `Basic realm="NetHSM"`)
	}
	h.Set("Cache-Control", "no-cache")
	return h
}

// answer finds the operation and checks, in the order of a real NetHSM, the state, the caller, the content types and
// the names in the path, before it calls the operation.
func (s *Server) answer(r *http.Request, body []byte, tooLarge bool) (*reply, Role) {
	if len(r.URL.RequestURI()) > 2000 {
		return fail(http.StatusRequestURITooLong, "the address has more than 2000 bytes"), ""
	}
	p, inAPI := strings.CutPrefix(r.URL.Path, base)
	operations := route(p)
	if !inAPI || len(operations) == 0 {
		return fail(http.StatusNotFound, "no such endpoint"), ""
	}
	i := slices.IndexFunc(operations, func(o *operation) bool { return o.method == r.Method })
	if i < 0 {
		return fail(http.StatusMethodNotAllowed, "no such method here"), ""
	}
	o := operations[i]
	if o.handle == nil {
		return fail(http.StatusNotImplemented, "this test server does not implement %s %s", o.method, o.path), ""
	}

	s.state.mu.Lock()
	defer s.state.mu.Unlock()
	c := &call{server: s, state: s.state, operation: o, request: r, body: body, params: o.params(p)}
	if !slices.Contains(o.states, s.current()) {
		return fail(http.StatusPreconditionFailed, "not available: the NetHSM is %s", s.current()), ""
	}
	if refusal := c.authorize(); refusal != nil {
		return refusal, c.role()
	}
	if refusal := c.negotiate(tooLarge); refusal != nil {
		return refusal, c.role()
	}
	if refusal := c.checkNames(); refusal != nil {
		return refusal, c.role()
	}
	return o.handle(c), c.role()
}

func (c *call) role() Role {
	if c.user == nil {
		return ""
	}
	return c.user.role
}

// authorize authenticates the caller and checks whether the operation is allowed for it. It returns nil if so.
func (c *call) authorize() *reply {
	o := c.operation
	// an operation for administrators and the public needs an administrator only while the NetHSM is operational
	if len(o.roles) == 0 || (o.public && c.server.current() != Operational) {
		return nil
	}
	var refusal *reply
	if c.user, refusal = c.authenticate(); refusal != nil {
		return refusal
	}
	namespace := c.user.namespace()
	switch {
	case !slices.Contains(o.roles, c.user.role):
		return fail(http.StatusForbidden, "not for the role %s", c.user.role)
	case namespace != "" && o.rootOnly:
		return fail(http.StatusForbidden, "not for users of a namespace")
	case namespace != "" && !c.state.namespaces[namespace]:
		return fail(http.StatusForbidden, "namespace %s was not created", namespace)
	}
	return nil
}

// negotiate checks the size and the content types of the request.
func (c *call) negotiate(tooLarge bool) *reply {
	if tooLarge {
		return fail(http.StatusRequestEntityTooLarge, "the request has more than %d bytes", maxBody)
	}
	if len(c.operation.takes) > 0 && !slices.Contains(c.operation.takes, c.contentType()) {
		return fail(http.StatusUnsupportedMediaType, "the content type must be one of %v", c.operation.takes)
	}
	gives := c.operation.gives
	if gives == "" {
		gives = typeJSON // errors are
	}
	if !accepts(c.request.Header.Values("Accept"), gives) {
		return fail(http.StatusNotAcceptable, "the answer is %s, which the request does not accept", gives)
	}
	return nil
}

func (c *call) contentType() string {
	name, _, err := mime.ParseMediaType(c.request.Header.Get("Content-Type"))
	if err != nil {
		return ""
	}
	return name
}

func accepts(headers []string, contentType string) bool {
	if len(headers) == 0 {
		return true
	}
	class, _, _ := strings.Cut(contentType, "/")
	for accepted := range strings.SplitSeq(strings.Join(headers, ","), ",") {
		name, _, err := mime.ParseMediaType(strings.TrimSpace(accepted))
		if err == nil && (name == contentType || name == class+"/*" || name == "*/*") {
			return true
		}
	}
	return false
}

// checkNames checks the names in the path. That of POST /users/NAMESPACE~ is a namespace alone.
func (c *call) checkNames() *reply {
	for parameter, value := range c.params {
		good := validID.MatchString(value)
		if parameter == "UserID" {
			good = len(value) <= 128 && userID.MatchString(value)
			if c.request.Method == http.MethodPost && !strings.Contains(c.operation.path, "passphrase") {
				namespace, found := strings.CutSuffix(value, "~")
				good = found && validID.MatchString(namespace)
			}
		}
		if !good {
			return fail(http.StatusBadRequest, "%q cannot be a %s", value, parameter)
		}
	}
	return nil
}
