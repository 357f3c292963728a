package httpapi

import (
	"errors"
	"io"
	"mime"
	"net/http"
	"os"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// readBody reads the body of a request, within its limit in size and in time. A size of 0 is that of brokerapi.
func readBody(w http.ResponseWriter, r *http.Request, size int64) ([]byte, error) {
	limit := int64(brokerapi.RequestLimits.Bytes)
	if size > 0 {
		limit = min(limit, size)
	}
	tooLarge := WithStatus(http.StatusRequestEntityTooLarge, failure.New(failure.Invalid,
		"the request has more than %d bytes", limit).WithHint("sign a smaller document"))
	if r.ContentLength > limit {
		w.Header().Set("Connection", "close")
		return nil, tooLarge
	}
	data, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
	var exceeded *http.MaxBytesError
	switch {
	case errors.As(err, &exceeded):
		return nil, tooLarge
	case errors.Is(err, os.ErrDeadlineExceeded):
		w.Header().Set("Connection", "close")
		return nil, WithStatus(http.StatusRequestTimeout, failure.New(failure.Timeout,
			"the request was not complete after %s", readTime).WithHint("try again"))
	case err != nil:
		w.Header().Set("Connection", "close")
		return nil, failure.New(failure.Invalid, "cannot read the request: %w", err).WithHint("send all of it")
	}
	// The deadline would cancel the request, which can wait for the module or a person for longer.
	_ = http.NewResponseController(w).SetReadDeadline(time.Time{})
	return data, nil
}

// ReadJSON decodes the body of a request, as brokerapi.ReadRequest does.
func ReadJSON(r *http.Request, into any) error {
	media, parameters, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	delete(parameters, "charset") // JSON is in UTF-8, whatever it says
	if err != nil || media != "application/json" || len(parameters) > 0 || r.Header.Get("Content-Encoding") != "" {
		return WithStatus(http.StatusUnsupportedMediaType, failure.New(failure.Invalid,
			"the request is not application/json without an encoding").WithHint("send Content-Type: application/json"))
	}
	data, err := io.ReadAll(r.Body)
	if err == nil {
		err = brokerapi.ReadRequest(data, into)
	}
	if err != nil {
		return failure.New(failure.Invalid, "cannot read the request: %w", err).WithHint("see the description of the API")
	}
	return nil
}
