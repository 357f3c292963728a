package identity

import (
	"context"
	"fmt"
	"net"
	"os/user"
	"slices"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/peercred"
)

// peerKey is the key of the context value that ConnContext sets.
type peerKey struct{}

// ConnContext keeps who connected to a Unix socket. It is the ConnContext of an http.Server whose requests are given to
// Caller.
func ConnContext(ctx context.Context, conn net.Conn) context.Context {
	socket, ok := conn.(*net.UnixConn)
	if !ok {
		return ctx
	}
	peer, err := peercred.Of(syscall.Conn(socket))
	if err != nil {
		return ctx // the request then has no credential
	}
	return context.WithValue(ctx, peerKey{}, peer)
}

// peerOf returns who made the connection of a request.
func peerOf(ctx context.Context) (unix.Ucred, bool) {
	peer, ok := ctx.Value(peerKey{}).(unix.Ucred)
	return peer, ok
}

// peerRules say which users are callers.
type peerRules struct {
	users          []string // decimal ids
	groups         []string // decimal ids
	administrators []string // decimal ids of users
}

// newPeerRules resolves names of users and groups. It fails when one does not exist.
func newPeerRules(config *Unix, administrators []Administrator) (rules peerRules, err error) {
	if config != nil {
		for _, name := range config.Users {
			id, err := userID(name)
			if err != nil {
				return rules, failure.New(failure.NotFound, "cannot resolve callers.unix.users: %w", err).
					WithHint("list users of this machine, or decimal ids")
			}
			rules.users = append(rules.users, id)
		}
		for _, name := range config.Groups {
			id, err := groupID(name)
			if err != nil {
				return rules, failure.New(failure.NotFound, "cannot resolve callers.unix.groups: %w", err).
					WithHint("list groups of this machine, or decimal ids")
			}
			rules.groups = append(rules.groups, id)
		}
	}
	for _, one := range administrators {
		if one.Unix == "" {
			continue
		}
		id, err := userID(one.Unix)
		if err != nil {
			return rules, failure.New(failure.NotFound, "cannot resolve administrators: %w", err).
				WithHint("list users of this machine, or decimal ids")
		}
		rules.administrators = append(rules.administrators, id)
	}
	return rules, nil
}

// userID returns the decimal id of a user, whose name or id is given.
func userID(name string) (string, error) {
	if isID(name) {
		return name, nil
	}
	found, err := user.Lookup(name)
	if err != nil {
		return "", err
	}
	return found.Uid, nil
}

// groupID returns the decimal id of a group, whose name or id is given.
func groupID(name string) (string, error) {
	if isID(name) {
		return name, nil
	}
	found, err := user.LookupGroup(name)
	if err != nil {
		return "", err
	}
	return found.Gid, nil
}

// isID reports whether text is a decimal id of a user or group as the kernel writes it.
func isID(text string) bool {
	id, err := strconv.ParseUint(text, 10, 32)
	return err == nil && strconv.FormatUint(id, 10) == text
}

// caller returns the caller at the other end of a Unix socket.
func (r peerRules) caller(peer unix.Ucred) (Caller, error) {
	id := strconv.FormatUint(uint64(peer.Uid), 10)
	account, err := user.LookupId(id)
	if err != nil {
		account = nil // a user of a container, for example
	}
	admin := isAdministrator(r.administrators, id)
	if !admin && !slices.Contains(r.users, id) && !r.inGroup(peer, account) {
		return Caller{}, failure.New(failure.Denied, "cannot accept the caller: user %s is not listed", id).
			WithHint(fmt.Sprintf("add user %s to callers.unix of the broker", id))
	}
	claims := map[string]any{"uid": int64(peer.Uid), "gid": int64(peer.Gid), "user": ""}
	if account != nil {
		claims["user"] = account.Username
	}
	return Caller{Issuer: IssuerUnix, Subject: id, Claims: claims, Admin: admin}, nil
}

// inGroup reports whether a listed group is the process's group, or has its user as a member. account may be nil.
func (r peerRules) inGroup(peer unix.Ucred, account *user.User) bool {
	if len(r.groups) == 0 {
		return false
	}
	groups := []string{strconv.FormatUint(uint64(peer.Gid), 10)}
	if account != nil {
		if more, err := account.GroupIds(); err == nil {
			groups = append(groups, more...)
		}
	}
	return slices.ContainsFunc(groups, func(id string) bool { return slices.Contains(r.groups, id) })
}
