package web

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"html/template"
	"io/fs"
	"log/slog"
	"net/http"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/httpapi"
)

//go:embed templates static
var files embed.FS

// view is what a page shows, or where the browser goes on.
type view struct {
	Template string // name of a file in templates, without its ending
	Title    string
	Section  string // of the navigation
	Data     any
	Location string // instead of a page
	Raw      []byte // a file to be saved, instead of a page
	Name     string // of the file
}

// shown is what all templates get.
type shown struct {
	*view
	Who     *who // nil for a page without a session
	Now     time.Time
	Host    string // of the broker
	Version string
	Style   string // URL
	Script  string
	Icon    string
	Failure *failure.Error // of an error page
}

// pages are the templates and the static files.
type pages struct {
	templates map[string]*template.Template
	static    map[string]file // by name, which has a hash of the content
	named     map[string]string
}

// file is a static file.
type file struct {
	data []byte
	kind string // media type
}

// kinds are the media types of static files.
var kinds = map[string]string{".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8",
	".svg": "image/svg+xml"}

// readPages reads the embedded files. It panics if one of them is broken, which tests find.
func readPages() pages {
	p := pages{templates: map[string]*template.Template{}, static: map[string]file{}, named: map[string]string{}}
	base := template.Must(template.New("base").Funcs(functions).ParseFS(files, "templates/*.tmpl"))
	names, err := fs.Glob(files, "templates/*.html")
	if err != nil {
		panic(err)
	}
	for _, name := range names {
		t := template.Must(template.Must(base.Clone()).ParseFS(files, name))
		p.templates[strings.TrimSuffix(path.Base(name), ".html")] = t
	}
	entries, err := fs.ReadDir(files, "static")
	if err != nil {
		panic(err)
	}
	for _, e := range entries {
		data, err := fs.ReadFile(files, "static/"+e.Name())
		if err != nil {
			panic(err)
		}
		hash := sha256.Sum256(data)
		ending := path.Ext(e.Name())
		name := strings.TrimSuffix(e.Name(), ending) + "." + hex.EncodeToString(hash[:6]) + ending
		p.static[name] = file{data, kinds[ending]}
		p.named[e.Name()] = "/static/" + name
	}
	return p
}

// static serves the style sheet, the script and the icon. Their names change with their content.
func (w *Web) static(out http.ResponseWriter, r *http.Request) {
	f, found := w.pages.static[r.PathValue("file")]
	if !found {
		w.fail(out, r, failure.New(failure.NotFound, "the broker has no such file").WithHint("load the page again"))
		return
	}
	out.Header().Set("Cache-Control", "public, max-age=31536000, immutable")
	send(out, http.StatusOK, f.kind, f.data)
}

func (w *Web) favicon(out http.ResponseWriter, r *http.Request) {
	http.Redirect(out, r, w.pages.named["icon.svg"], http.StatusSeeOther)
}

// answer sends a page, or the page of a failure.
func (w *Web) answer(out http.ResponseWriter, r *http.Request, p *who, v *view, err error) {
	switch {
	case err != nil:
		w.failTo(out, r, p, err)
	case v.Location != "":
		http.Redirect(out, r, v.Location, http.StatusSeeOther)
	case v.Raw != nil:
		out.Header().Set("Content-Disposition", `attachment; filename="`+v.Name+`"`)
		send(out, http.StatusOK, "application/json", v.Raw)
	default:
		w.render(out, http.StatusOK, &shown{view: v, Who: p})
	}
}

// fail sends the page of a failure, or a Problem to the script.
func (w *Web) fail(out http.ResponseWriter, r *http.Request, err error) { w.failTo(out, r, nil, err) }

func (w *Web) failTo(out http.ResponseWriter, r *http.Request, p *who, err error) {
	if strings.HasPrefix(r.Header.Get("Content-Type"), "application/json") {
		httpapi.WriteProblem(out, r, err)
		return
	}
	f := failure.From(err)
	status := httpapi.Status(err)
	if errors.Is(err, r.Context().Err()) && r.Context().Err() != nil {
		f = failure.New(failure.Timeout, "the broker did not answer in time").WithHint("try again")
		status = http.StatusGatewayTimeout
	}
	slog.Info("refused", append([]any{"kind", f.Kind.String(), "status", status, "error", err},
		httpapi.Attributes(r.Context())...)...)
	shownFailure := &failure.Error{Kind: f.Kind, What: f.What, Hint: f.Hint}
	if f.Kind == failure.Internal {
		shownFailure.What = "the broker failed"
		shownFailure.Hint = "tell the operator of the broker, who finds the cause in its log"
	}
	w.render(out, status, &shown{view: &view{Template: "failure", Title: failureTitle(status)}, Who: p,
		Failure: shownFailure})
}

// failureTitle names a failure for people.
func failureTitle(status int) string {
	switch status {
	case http.StatusNotFound:
		return "Not found"
	case http.StatusUnauthorized:
		return "Sign in again"
	case http.StatusForbidden:
		return "Not allowed"
	case http.StatusConflict:
		return "Not possible any more"
	case http.StatusTooManyRequests:
		return "Too many requests"
	case http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return "Not available now"
	case http.StatusInternalServerError:
		return "The broker failed"
	}
	return "This did not work"
}

// render sends a page.
func (w *Web) render(out http.ResponseWriter, status int, s *shown) {
	s.Now, s.Version, s.Host = w.options.Now().UTC(), w.options.Version, strings.TrimPrefix(w.origin, "https://")
	s.Style, s.Script, s.Icon = w.pages.named["style.css"], w.pages.named["passkey.js"], w.pages.named["icon.svg"]
	var page bytes.Buffer
	if err := w.pages.templates[s.Template].ExecuteTemplate(&page, "base", s); err != nil {
		slog.Error("cannot render a page", "template", s.Template, "error", err)
		http.Error(out, "the broker failed on this page", http.StatusInternalServerError)
		return
	}
	send(out, status, "text/html; charset=utf-8", page.Bytes())
}

// send sends an answer, which the browser has a limited time to read.
func send(out http.ResponseWriter, status int, kind string, data []byte) {
	out.Header().Set("Content-Type", kind)
	out.Header().Set("Content-Length", strconv.Itoa(len(data)))
	_ = http.NewResponseController(out).SetWriteDeadline(time.Now().Add(writeTime))
	out.WriteHeader(status)
	_, _ = out.Write(data) //nolint:gosec // html/template has escaped it
}

// notices are what a page says after something was done, by the parameter done.
var notices = map[string]string{
	"approve":    "Your approval was recorded.",
	"reject":     "You have rejected the request.",
	"withdraw":   "Your approval was withdrawn.",
	"cancelled":  "The request was cancelled.",
	"proposed":   "The request was made.",
	"signed-out": "You have signed out.",
}

// done returns what a page says after something was done.
func done(r *http.Request) string { return notices[r.URL.Query().Get("done")] }
