package remote

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"

	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// sessionPrefix begins the bearer token of a session, which tells it from a token of an OIDC issuer.
const sessionPrefix = "hsm-session."

// SignIn gets a session for an approver from a broker. All further calls to this broker are made in the session,
// instead of with the token that the settings name.
func (b *Backend) SignIn(ctx context.Context, s *config.Settings, l brokerapi.Login) (session brokerapi.Session,
	err error) {
	if err := b.post(ctx, s, brokerapi.SessionsPath, l, &session); err != nil {
		return session, err
	}
	if err := checkToken(session.Token); err != nil {
		return session, failure.New(failure.Internal, "the broker at %s sent an invalid session: %w", s.Broker, err).
			WithHint("check that an hsm-broker of the same version listens there")
	}
	b.connections.mu.Lock()
	defer b.connections.mu.Unlock()
	if b.connections.sessions == nil {
		b.connections.sessions = map[string]string{}
	}
	b.connections.sessions[s.Broker] = sessionPrefix + session.Token
	session.Person = plain(session.Person)
	return session, nil
}

// Evidence returns all that shows what a request is, and who agreed to it. Nothing of it has been verified.
func (b *Backend) Evidence(ctx context.Context, s *config.Settings, id string) (e brokerapi.Evidence, err error) {
	return e, b.read(ctx, s, brokerapi.EvidencePath(id), &e)
}

// Decide posts a decision about a request, an approval.Envelope, and returns the request after it.
func (b *Backend) Decide(ctx context.Context, s *config.Settings, id string, envelope []byte) (brokerapi.Request,
	error) {
	return b.propose(ctx, s, brokerapi.ApprovalsPath(id), brokerapi.SignedApproval{Envelope: envelope}, id)
}

// Approvers returns all people whom the policy names, with their credentials.
func (b *Backend) Approvers(ctx context.Context, s *config.Settings) ([]brokerapi.Approver, error) {
	var all []brokerapi.Approver
	path := brokerapi.ApproversPath
	for {
		var page brokerapi.Approvers
		if err := b.read(ctx, s, path, &page); err != nil {
			return nil, err
		}
		all = append(all, page.Approvers...)
		switch {
		case page.After == "":
			return all, nil
		case len(page.Approvers) == 0 || len(all) > answerLimits.Elements:
			return nil, noEnd(s)
		}
		path = brokerapi.ApproversPath + "?" + url.Values{"after": {page.After}}.Encode()
	}
}

// Export returns the people whose credentials are enrolled, with the documents of these; removed adds the credentials
// that were removed.
func (b *Backend) Export(ctx context.Context, s *config.Settings, removed bool) ([]brokerapi.Exported, error) {
	all, values := []brokerapi.Exported{}, url.Values{}
	if removed {
		values.Set("removed", "true")
	}
	for {
		path := brokerapi.CredentialsPath
		if len(values) > 0 {
			path += "?" + values.Encode()
		}
		var page brokerapi.Export
		if err := b.read(ctx, s, path, &page); err != nil {
			return nil, err
		}
		all = append(all, page.Approvers...)
		switch {
		case page.After == "":
			return all, nil
		case len(page.Approvers) == 0 || len(all) > answerLimits.Elements:
			return nil, noEnd(s)
		}
		values.Set("after", page.After)
	}
}

// noEnd is the failure of a list whose pages do not end.
func noEnd(s *config.Settings) error {
	return failure.New(failure.Internal, "the broker at %s sent an invalid answer: its approvers have no end", s.Broker).
		WithHint("check that an hsm-broker of the same version listens there")
}

// Enrol proposes a credential of a person, and returns the request.
func (b *Backend) Enrol(ctx context.Context, s *config.Settings, n brokerapi.NewCredential) (brokerapi.Request, error) {
	return b.propose(ctx, s, brokerapi.CredentialsPath, n, "")
}

// Invite returns a link by which a person can enrol a passkey on the broker's page, once.
func (b *Backend) Invite(ctx context.Context, s *config.Settings, person string) (i brokerapi.Invitation, err error) {
	if err := b.post(ctx, s, brokerapi.InvitationsPath(person), nil, &i); err != nil {
		return i, err
	}
	if !isPage(i.URL) {
		return i, failure.New(failure.Internal, "the broker at %s sent an invalid answer: %w", s.Broker,
			errors.New("its link is no https URL")).
			WithHint("check that an hsm-broker of the same version listens there")
	}
	return i, nil
}

// Forget erases the name of a person who has left from what the broker keeps.
func (b *Backend) Forget(ctx context.Context, s *config.Settings, person string) (f brokerapi.Forgotten, err error) {
	err = b.post(ctx, s, brokerapi.ForgetPath(person), nil, &f)
	return f, err
}

// propose posts a message whose answer is a request: that of an ID, if one is given.
func (b *Backend) propose(ctx context.Context, s *config.Settings, path string, message any, id string) (
	brokerapi.Request, error) {
	body, err := encode(message)
	if err != nil {
		return brokerapi.Request{}, err
	}
	return b.request(ctx, s, call{method: http.MethodPost, path: path, body: body}, id)
}

// post posts a message, or an empty body for nil.
func (b *Backend) post(ctx context.Context, s *config.Settings, path string, message, into any) error {
	body, err := encode(message)
	if err != nil {
		return err
	}
	c, err := b.connections.to(s)
	if err != nil {
		return err
	}
	defer c.release()
	return c.do(ctx, call{method: http.MethodPost, path: path, body: body, into: into})
}

// encode returns a message as JSON; nil for none.
func encode(message any) ([]byte, error) {
	if message == nil {
		return nil, nil
	}
	body, err := json.Marshal(message)
	if err != nil {
		return nil, failure.New(failure.Internal, "cannot encode a request to the broker: %w", err)
	}
	return body, nil
}
