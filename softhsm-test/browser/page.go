package browser

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/cdproto/webauthn"
	"github.com/chromedp/chromedp"
)

// Page is the tab of one person. Its cookies and passkeys are the person's own.
type Page struct {
	ctx      context.Context
	t        testing.TB
	requests recorder // URLs
	device   webauthn.AuthenticatorID
	errors   recorder // what the console shows, such as a violation of the Content-Security-Policy
}

// recorder collects texts from the goroutine that reads events.
type recorder struct {
	mu    sync.Mutex
	texts []string
}

func (r *recorder) add(text string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.texts = append(r.texts, text)
}

func (r *recorder) all() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]string{}, r.texts...)
}

// Person opens a tab for one more person, without any cookie, and with an authenticator that has no passkey yet.
func (b *Browser) Person(t testing.TB, o ...AuthenticatorOption) *Page {
	t.Helper()
	ctx, end := chromedp.NewContext(b.ctx, chromedp.WithNewBrowserContext())
	t.Cleanup(end)
	p := &Page{ctx: ctx, t: t}
	if err := chromedp.Listen(ctx, p.event); err != nil {
		t.Fatal(err)
	}
	if _, err := call(p, network.Enable, network.EnableParams{}); err != nil {
		t.Fatal(err)
	}
	if _, err := call(p, log.Enable, cdp.Empty{}); err != nil {
		t.Fatal(err)
	}
	p.authenticator(o)
	return p
}

func (p *Page) event(event any) {
	switch e := event.(type) {
	case *network.EventRequestWillBeSent:
		p.requests.add(e.Request.URL)
	case *log.EventEntryAdded:
		p.errors.add(fmt.Sprintf("%s: %s (%s)", e.Entry.Level, e.Entry.Text, e.Entry.URL))
	case *runtime.EventExceptionThrown:
		p.errors.add(fmt.Sprintf("exception: %s (%s)", e.ExceptionDetails.Text, e.ExceptionDetails.URL))
	}
}

// call calls a command of the DevTools protocol.
func call[P, R any](p *Page, command cdp.Command[P, R], parameters P) (R, error) {
	return chromedp.Run(p.ctx, func(ctx context.Context, target *chromedp.Target) (R, error) {
		return cdp.Call(ctx, target, command, parameters)
	})
}

// Requests returns the URLs of all requests that the page has made until now.
func (p *Page) Requests() []string { return p.requests.all() }

// Errors returns what the console has shown until now: failed requests, exceptions, and violations of the
// Content-Security-Policy.
func (p *Page) Errors() []string { return p.errors.all() }

func (p *Page) do(what string, steps ...chromedp.Action[chromedp.Void]) {
	p.t.Helper()
	if err := chromedp.Do(p.ctx, steps...); err != nil {
		p.t.Fatalf("%s: %v", what, err)
	}
}

// Open opens a URL and returns the HTTP status; 0 for another part of the same page.
func (p *Page) Open(url string) int {
	p.t.Helper()
	response, err := chromedp.RunResponse(p.ctx, chromedp.Navigate(url))
	if err != nil {
		p.t.Fatalf("opening %s: %v", url, err)
	}
	if response == nil {
		return 0
	}
	return int(response.Status)
}

// URL returns the address of the page.
func (p *Page) URL() string { return Evaluate[string](p, "location.href") }

// Text returns the text of the page, as a person sees it.
func (p *Page) Text() string { return Evaluate[string](p, "document.body.innerText") }

// Evaluate returns the value of a JavaScript expression, which may be a promise. The Content-Security-Policy of the
// page does not apply to it.
func Evaluate[T any](p *Page, expression string) T {
	p.t.Helper()
	value, err := chromedp.Run(p.ctx, chromedp.Evaluate[T](expression, chromedp.EvalAwaitPromise))
	if err != nil {
		p.t.Fatalf("evaluating %.200s: %v", expression, err)
	}
	return value
}

// Wait waits until the page is loaded and a JavaScript expression is true, on this page or on one that follows.
func (p *Page) Wait(expression string) {
	p.t.Helper()
	condition := fmt.Sprintf(`document.readyState === "complete" && !!(%s)`, expression)
	for tries := 1; ; tries++ {
		holds, err := chromedp.Run(p.ctx, chromedp.Evaluate[bool](condition))
		switch {
		case p.ctx.Err() != nil:
			p.t.Fatalf("waiting for %s: %v", expression, err)
		case err == nil && holds: // an error says that the page is being replaced
			return
		case tries%3000 == 0: // the test may hang, and has no other way to say where
			fmt.Fprintf(os.Stderr, "%s still waits for %s: %v\n%s\n", p.t.Name(), expression, err, p.Text())
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// WaitText waits until the page shows a text.
func (p *Page) WaitText(text string) {
	p.t.Helper()
	p.Wait(fmt.Sprintf("document.body.innerText.includes(%s)", quote(text)))
}

// WaitURL waits until the address of the page has a part.
func (p *Page) WaitURL(part string) {
	p.t.Helper()
	p.Wait(fmt.Sprintf("location.href.includes(%s)", quote(part)))
}

// quote returns a text as a JavaScript literal.
func quote(text string) string {
	literal, _ := json.Marshal(text) // a string can be encoded
	return string(literal)
}

// Click clicks the first button or link with a name that can be seen. It waits for it.
func (p *Page) Click(name string) {
	p.t.Helper()
	p.Wait(control(name))
	p.do("clicking "+name, chromedp.Click(chromedp.JSPath(control(name))))
}

// ClickOn clicks the first element that a CSS selector selects. It waits for it.
func (p *Page) ClickOn(selector string) {
	p.t.Helper()
	p.do("clicking "+selector, chromedp.Click(chromedp.CSS(selector)))
}

// control is a JavaScript expression for the first button or link with a name.
func control(name string) string {
	return fmt.Sprintf(`[...document.querySelectorAll("button, a, summary, input[type=submit]")].find(e =>
		(e.getAttribute("aria-label") || e.innerText || e.value || "").trim().replace(/\s+/g, " ") === %s &&
		e.checkVisibility()) || null`,
		quote(name))
}

// Has reports whether the page has a button or a link with a name that can be seen.
func (p *Page) Has(name string) bool {
	p.t.Helper()
	return Evaluate[bool](p, fmt.Sprintf("(%s) !== null", control(name)))
}

// Fill types a text into the field with a CSS selector, in place of what it holds.
func (p *Page) Fill(selector, text string) {
	p.t.Helper()
	p.do("filling in "+selector, chromedp.Click(chromedp.CSS(selector)))
	Evaluate[any](p, fmt.Sprintf("document.querySelector(%s).select()", quote(selector)))
	p.Press(text)
}

// Press presses keys, such as those of package kb.
func (p *Page) Press(keys string) {
	p.t.Helper()
	p.do("pressing keys", chromedp.KeyEvent(keys))
}

// Focused returns the name of what has the keyboard's focus: its text, its label, or its placeholder.
func (p *Page) Focused() string {
	p.t.Helper()
	return Evaluate[string](p, `(e => e.getAttribute("aria-label") || e.labels?.[0]?.innerText || e.innerText || "")
		(document.activeElement).trim()`)
}

// Look is how a person looks at a page.
type Look struct {
	Name          string
	Width, Height int64
	Dark          bool
}

// Looks are those that a page has to be right in.
var Looks = []Look{{"light", 1280, 900, false}, {"dark", 1280, 900, true}, {"phone", 360, 740, false}}

// Look has the person look at pages in another way from now on.
func (p *Page) Look(look Look) {
	p.t.Helper()
	scheme := "light"
	if look.Dark {
		scheme = "dark"
	}
	if _, err := call(p, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
		Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme},
			{Name: "prefers-reduced-motion", Value: "reduce"}}}); err != nil {
		p.t.Fatal(err)
	}
	p.do("setting the size", chromedp.EmulateViewport(look.Width, look.Height))
}

// Screenshot writes a picture of the whole page as PNG into a file.
func (p *Page) Screenshot(path string) {
	p.t.Helper()
	picture, err := chromedp.Run(p.ctx, chromedp.FullScreenshot(100))
	if err != nil {
		p.t.Fatalf("screenshot: %v", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		p.t.Fatal(err)
	}
	if err := os.WriteFile(path, picture, 0o644); err != nil {
		p.t.Fatal(err)
	}
}

// Elsewhere returns the URLs of requests to other origins than that of a URL.
func (p *Page) Elsewhere(origin string) (others []string) {
	for _, url := range p.Requests() {
		if !strings.HasPrefix(url+"/", strings.TrimSuffix(origin, "/")+"/") && !strings.HasPrefix(url, "data:") &&
			!strings.HasPrefix(url, "about:") {
			others = append(others, url)
		}
	}
	return others
}
