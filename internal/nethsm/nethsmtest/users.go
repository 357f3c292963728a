package nethsmtest

import (
	"net/http"
	"slices"
	"strings"
	"time"
)

// Role is the role of a user.
type Role string

// The roles of the description's UserRole.
const (
	Administrator Role = "Administrator"
	Operator      Role = "Operator"
	Metrics       Role = "Metrics"
	Backup        Role = "Backup"
)

// The users that Provision makes.
const (
	AdminUser    = "admin"
	OperatorUser = "operator"
)

// UnlockPassphrase is the unlock passphrase of a NetHSM after Provision.
const UnlockPassphrase = "unlock passphrase"

type user struct {
	id         string // NAMESPACE~USER, or USER in the root namespace
	realName   string
	role       Role
	passphrase digest
	tags       []string
}

func (u *user) namespace() string { return namespaceOf(u.id) }

// namespaceOf returns the part before the tilde; empty is the root namespace.
func namespaceOf(id string) string {
	namespace, _, found := strings.Cut(id, "~")
	if !found {
		return ""
	}
	return namespace
}

// Provision makes an unprovisioned NetHSM operational, with users "admin" and "operator" of these passphrases (10 to
// 200 bytes).
func (s *Server) Provision(adminPassphrase, operatorPassphrase string) {
	s.t.Helper()
	s.state.mu.Lock()
	defer s.state.mu.Unlock()
	if s.state.provisioned || !goodPassphrase(adminPassphrase) || !goodPassphrase(operatorPassphrase) {
		s.t.Fatalf("cannot provision: a NetHSM that is %s, passphrases of %d and %d bytes",
			s.current(), len(adminPassphrase), len(operatorPassphrase))
	}
	s.state.provision(UnlockPassphrase, adminPassphrase)
	s.state.add(OperatorUser, OperatorUser, Operator, operatorPassphrase)
}

// AddUser adds a user without a request. The ID of one in a namespace is NAMESPACE~USER; operators may have tags.
func (s *Server) AddUser(id string, role Role, passphrase string, tags ...string) {
	s.t.Helper()
	if !userID.MatchString(id) || !goodPassphrase(passphrase) || (len(tags) > 0 && role != Operator) {
		s.t.Fatalf("no such user can be: %s, %s, tags %v, and a passphrase of %d bytes", id, role, tags, len(passphrase))
	}
	s.state.mu.Lock()
	defer s.state.mu.Unlock()
	s.state.add(id, id, role, passphrase).tags = slices.Clone(tags)
}

// AddNamespace creates a namespace without a request.
func (s *Server) AddNamespace(id string) {
	s.state.mu.Lock()
	defer s.state.mu.Unlock()
	s.state.namespaces[id] = true
}

func (s *state) provision(unlockPassphrase, adminPassphrase string) {
	s.provisioned = true
	s.unlockPassphrase = hashed(unlockPassphrase)
	s.add(AdminUser, AdminUser, Administrator, adminPassphrase)
}

func (s *state) add(id, realName string, role Role, passphrase string) *user {
	u := &user{id: id, realName: realName, role: role, passphrase: hashed(passphrase)}
	s.users[id] = u
	return u
}

// throttled reports whether a user sent a wrong passphrase less than the limit ago. Then even the right one is
// rejected.
func (s *Server) throttled(id string) bool {
	last, failed := s.failures[id]
	return failed && time.Since(last) < s.rateLimit
}

// authenticate returns the user whose credentials the request has, or the refusal.
func (c *call) authenticate() (*user, *reply) {
	id, passphrase, sent := c.request.BasicAuth()
	if !sent {
		return nil, fail(http.StatusUnauthorized, "authentication required")
	}
	if c.server.throttled(id) {
		return nil, fail(http.StatusTooManyRequests, "too many requests: wait a second after a wrong passphrase")
	}
	u := c.state.users[id]
	if u == nil || !u.passphrase.is(passphrase) {
		c.server.failures[id] = time.Now()
		return nil, fail(http.StatusUnauthorized, "wrong user or passphrase")
	}
	return u, nil
}

type userRequest struct {
	RealName   string `json:"realName"`
	Role       Role   `json:"role"`
	Passphrase string `json:"passphrase"`
}

func listUsers(c *call) *reply {
	type item struct {
		User string `json:"user"`
	}
	list := []item{}
	for _, id := range sortedKeys(c.state.users) {
		// an R-Administrator sees everyone
		if c.user.namespace() == "" || c.user.namespace() == namespaceOf(id) {
			list = append(list, item{id})
		}
	}
	return answer(list)
}

// createUser serves the three requests that create a user: POST /users, POST /users/NAMESPACE~ and PUT /users/ID.
func createUser(c *call) *reply {
	var wanted userRequest
	if refusal := c.decode(&wanted); refusal != nil {
		return refusal
	}
	id := c.params["UserID"]
	switch {
	case c.request.Method == http.MethodPost && id == "" && c.user.namespace() == "":
		id = randomID()
	case c.request.Method == http.MethodPost && id == "":
		id = c.user.namespace() + "~" + randomID()
	case c.request.Method == http.MethodPost:
		id += randomID()
	}
	if !c.mayManage(id) {
		return fail(http.StatusForbidden, "the user's namespace is not the caller's to manage")
	}
	if !slices.Contains([]Role{Administrator, Operator, Metrics, Backup}, wanted.Role) {
		return fail(http.StatusBadRequest, "unknown role %q", wanted.Role)
	}
	if namespaceOf(id) != "" && wanted.Role != Administrator && wanted.Role != Operator {
		return fail(http.StatusBadRequest, "the role %s does not exist in a namespace", wanted.Role)
	}
	if !goodPassphrase(wanted.Passphrase) {
		return weakPassphrase()
	}
	if c.state.users[id] != nil {
		return fail(http.StatusConflict, "user %s already exists", id)
	}
	c.state.add(id, wanted.RealName, wanted.Role, wanted.Passphrase)
	if c.request.Method == http.MethodPut {
		return &reply{status: http.StatusCreated}
	}
	return created("/users/", id)
}

// mayManage reports whether the caller may make a user of this ID: one of its own namespace, or, for an
// R-Administrator, one of a namespace that was not created yet.
func (c *call) mayManage(id string) bool {
	namespace := namespaceOf(id)
	return namespace == c.user.namespace() || (c.user.namespace() == "" && !c.state.namespaces[namespace])
}

// target returns the user of the path: of the caller's namespace, or, for a caller of the root namespace, of any where
// the operation allows that, and of a namespace that does not exist: nobody of it could.
func (c *call) target() (*user, *reply) {
	id := c.params["UserID"]
	namespace := namespaceOf(id)
	asRoot := c.user.namespace() == "" && (c.operation.rootReadsAll || !c.state.namespaces[namespace])
	if namespace != c.user.namespace() && !asRoot {
		return nil, fail(http.StatusForbidden, "the user is in another namespace")
	}
	// an operator may read itself alone
	if c.user.role == Operator && id != c.user.id {
		return nil, fail(http.StatusForbidden, "operators may only ask for themselves")
	}
	u := c.state.users[id]
	if u == nil {
		return nil, fail(http.StatusNotFound, "no user %s", id)
	}
	return u, nil
}

func getUser(c *call) *reply {
	u, refusal := c.target()
	if refusal != nil {
		return refusal
	}
	return answer(struct {
		RealName string `json:"realName"`
		Role     Role   `json:"role"`
	}{u.realName, u.role})
}

func deleteUser(c *call) *reply {
	u, refusal := c.target()
	if refusal != nil {
		return refusal
	}
	if u.id == c.user.id {
		return fail(http.StatusBadRequest, "nobody can delete their own user")
	}
	delete(c.state.users, u.id)
	return done()
}

func setUserPassphrase(c *call) *reply {
	u, refusal := c.target()
	if refusal != nil {
		return refusal
	}
	passphrase, refusal := c.passphrase()
	if refusal != nil {
		return refusal
	}
	u.passphrase = hashed(passphrase)
	return done()
}

func listUserTags(c *call) *reply {
	u, refusal := c.target()
	if refusal != nil {
		return refusal
	}
	if u.role != Operator {
		return fail(http.StatusBadRequest, "only operators have tags")
	}
	return answer(append([]string{}, u.tags...))
}

func addUserTag(c *call) *reply {
	u, refusal := c.target()
	if refusal != nil {
		return refusal
	}
	if u.role != Operator {
		return fail(http.StatusBadRequest, "only operators have tags")
	}
	return addTag(&u.tags, c.params["Tag"])
}

func deleteUserTag(c *call) *reply {
	u, refusal := c.target()
	if refusal != nil {
		return refusal
	}
	if u.role != Operator {
		return fail(http.StatusBadRequest, "only operators have tags")
	}
	return deleteTag(&u.tags, c.params["Tag"])
}

// addTag adds a tag of a user or a key.
func addTag(tags *[]string, tag string) *reply {
	if !validID.MatchString(tag) {
		return fail(http.StatusBadRequest, "%q cannot be a tag", tag)
	}
	if slices.Contains(*tags, tag) {
		return &reply{status: http.StatusNotModified}
	}
	*tags = append(*tags, tag)
	slices.Sort(*tags)
	return done()
}

func deleteTag(tags *[]string, tag string) *reply {
	i := slices.Index(*tags, tag)
	if i < 0 {
		return fail(http.StatusNotFound, "no tag %s", tag)
	}
	*tags = slices.Delete(*tags, i, i+1)
	return done()
}

func listNamespaces(c *call) *reply {
	return answer(items(sortedKeys(c.state.namespaces)))
}

func createNamespace(c *call) *reply {
	id := c.params["NamespaceID"]
	if c.state.namespaces[id] {
		return fail(http.StatusBadRequest, "namespace %s already exists", id)
	}
	c.state.namespaces[id] = true
	return done()
}

// deleteNamespace deletes the namespace and its keys. Its users stay, without being able to do anything, as before its
// creation.
func deleteNamespace(c *call) *reply {
	id := c.params["NamespaceID"]
	if !c.state.namespaces[id] {
		return fail(http.StatusNotFound, "no namespace %s", id)
	}
	delete(c.state.namespaces, id)
	for name := range c.state.keys {
		if name.namespace == id {
			delete(c.state.keys, name)
		}
	}
	return done()
}
