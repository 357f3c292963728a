package web

import (
	"crypto/subtle"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/httpapi"
	"github.com/notation-hsm/notation-hsm/internal/identity"
)

// cookie is the cookie with the token of a session. Browsers accept its name from this host alone, over TLS.
const cookie = "__Host-session"

// csrfField is the field of forms, and csrfHeader the header of the script, with the token against requests of other
// sites.
const (
	csrfField  = "csrf"
	csrfHeader = "X-CSRF-Token"
)

// who is a person who has signed in.
type who struct {
	Person     string
	Credential string // sha256:HEX
	CSRF       string
	Expires    time.Time
	token      string
}

func (p *who) caller() identity.Caller { return callerOf(p.Person) }

// signedIn returns who has made a request. It fails with Denied without a session that counts.
func (w *Web) signedIn(r *http.Request) (*who, error) {
	set, err := r.Cookie(cookie)
	if err != nil {
		return nil, unauthorized("you have not signed in")
	}
	read, err := w.options.Sessions.Read(r.Context(), set.Value)
	if failure.Is(err, failure.Denied) {
		return nil, unauthorized("your session has ended")
	}
	if err != nil {
		return nil, err
	}
	_, person, err := w.options.Broker.Credential(r.Context(), read.Credential)
	if failure.Is(err, failure.NotFound) || err == nil && person != read.Person ||
		err == nil && w.options.Broker.Person(callerOf(person)) != person {
		return nil, unauthorized("what you have signed in with was removed")
	}
	if err != nil {
		return nil, err
	}
	return &who{Person: person, Credential: read.Credential, CSRF: read.CSRF, Expires: read.Expires, token: set.Value}, nil
}

func unauthorized(why string) error {
	return httpapi.WithStatus(http.StatusUnauthorized, failure.New(failure.Denied, "%s", why).WithHint("sign in"))
}

// setSession has the browser keep the session of a person who has signed in.
func (w *Web) setSession(out http.ResponseWriter, person, credential string) {
	token, expires := w.options.Sessions.Issue(person, credential)
	http.SetCookie(out, &http.Cookie{Name: cookie, Value: token, Path: "/", Expires: expires, Secure: true, HttpOnly: true,
		SameSite: http.SameSiteStrictMode})
}

// signOut ends a session.
func (w *Web) signOut(out http.ResponseWriter, r *http.Request, p *who) (*view, error) {
	if err := w.options.Sessions.End(r.Context(), p.token); err != nil {
		return nil, err
	}
	http.SetCookie(out, &http.Cookie{Name: cookie, Path: "/", MaxAge: -1, Secure: true, HttpOnly: true,
		SameSite: http.SameSiteStrictMode})
	return &view{Location: "/signin?done=signed-out"}, nil
}

// checkToken fails unless a request has the token of its session against requests of other sites.
func checkToken(p *who, token string) error {
	if subtle.ConstantTimeCompare([]byte(p.CSRF), []byte(token)) != 1 {
		return failure.New(failure.Denied, "the request does not come from a page of your session").
			WithHint("load the page again and try again")
	}
	return nil
}

// public returns a handler of a page that needs no session.
func (w *Web) public(show func(*http.Request) (*view, error)) http.HandlerFunc {
	return func(out http.ResponseWriter, r *http.Request) {
		v, err := show(r)
		w.answer(out, r, nil, v, err)
	}
}

// page returns a handler of a page that needs a session. Without one, it asks to sign in and comes back.
func (w *Web) page(show func(*http.Request, *who) (*view, error)) http.HandlerFunc {
	return func(out http.ResponseWriter, r *http.Request) {
		p, err := w.signedIn(r)
		if failure.Is(err, failure.Denied) {
			target := "/signin"
			if next := r.URL.RequestURI(); next != "/" {
				target += "?next=" + url.QueryEscape(next)
			}
			http.Redirect(out, r, target, http.StatusSeeOther)
			return
		}
		var v *view
		if err == nil {
			v, err = show(r, p)
		}
		w.answer(out, r, p, v, err)
	}
}

// form returns a handler of a form, which needs a session and its token.
func (w *Web) form(do func(http.ResponseWriter, *http.Request, *who) (*view, error)) http.HandlerFunc {
	return func(out http.ResponseWriter, r *http.Request) {
		p, err := w.signedIn(r)
		var v *view
		if err == nil {
			if err = r.ParseForm(); err != nil {
				err = failure.New(failure.Invalid, "cannot read the form: %w", err).WithHint("load the page again and try again")
			}
		}
		if err == nil {
			err = checkToken(p, r.PostForm.Get(csrfField))
		}
		if err == nil {
			err = w.attempt(r)
		}
		if err == nil {
			v, err = do(out, r, p)
		}
		w.answer(out, r, p, v, err)
	}
}

// attempt fails with Throttled when an address has begun too much.
func (w *Web) attempt(r *http.Request) error {
	if w.attempts.Allow(r.RemoteAddr) {
		return nil
	}
	return failure.New(failure.Throttled, "there were too many attempts from here").WithHint("try again in a minute")
}

// ceremony returns a handler for the script, which needs no session.
func (w *Web) ceremony(do func(http.ResponseWriter, *http.Request) (any, error)) http.HandlerFunc {
	return func(out http.ResponseWriter, r *http.Request) {
		err := w.attempt(r)
		var body any
		if err == nil {
			body, err = do(out, r)
		}
		answerScript(out, r, body, err)
	}
}

// decision returns a handler for the script, which needs a session and its token.
func (w *Web) decision(do func(*http.Request, *who) (any, error)) http.HandlerFunc {
	return func(out http.ResponseWriter, r *http.Request) {
		p, err := w.signedIn(r)
		if err == nil {
			err = checkToken(p, r.Header.Get(csrfHeader))
		}
		if err == nil {
			err = w.attempt(r)
		}
		var body any
		if err == nil {
			body, err = do(r, p)
		}
		answerScript(out, r, body, err)
	}
}

func answerScript(out http.ResponseWriter, r *http.Request, body any, err error) {
	if err != nil {
		httpapi.WriteProblem(out, r, err)
		return
	}
	httpapi.WriteJSON(out, "application/json", http.StatusOK, body)
}

// local returns a path of this page that a browser may go on to, and / for anything else.
func local(next string) string {
	u, err := url.Parse(next)
	if err != nil || u.IsAbs() || u.Host != "" || u.User != nil || !strings.HasPrefix(next, "/") ||
		strings.HasPrefix(next, "//") || strings.ContainsAny(next, "\\\r\n\t") || len(next) > 1000 {
		return "/"
	}
	return next
}
