package sandbox

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"strconv"
	"syscall"
)

// User is a user account that a process can switch to.
type User struct {
	Name   string
	ID     int
	Group  int   // the primary group
	Groups []int // all groups, with the primary one
}

// LookUp returns the system's user account with a name. It fails when there is none, or its groups cannot be read.
func LookUp(name string) (User, error) {
	found, err := user.Lookup(name)
	if err != nil {
		return User{}, err
	}
	ids, err := found.GroupIds()
	if err != nil {
		return User{}, fmt.Errorf("cannot find the groups of user %s: %w", name, err)
	}
	u := User{Name: name}
	groups := make([]int, len(ids))
	var errs []error
	for i, id := range ids {
		groups[i], err = strconv.Atoi(id)
		errs = append(errs, err)
	}
	u.Groups = groups
	u.ID, err = strconv.Atoi(found.Uid)
	errs = append(errs, err)
	u.Group, err = strconv.Atoi(found.Gid)
	return u, errors.Join(append(errs, err)...)
}

// Become switches all threads of the process to the user and its groups, permanently, without capabilities. It has to
// be called as root, and fails if the process could become root again; as the user itself it does nothing.
func (u User) Become() error {
	if os.Geteuid() == u.ID {
		return nil
	}
	if err := syscall.Setgroups(u.Groups); err != nil {
		return fmt.Errorf("cannot set the groups of user %s: %w", u.Name, err)
	}
	if err := syscall.Setgid(u.Group); err != nil {
		return fmt.Errorf("cannot set the primary group of user %s: %w", u.Name, err)
	}
	if err := syscall.Setuid(u.ID); err != nil {
		return fmt.Errorf("cannot become user %s: %w", u.Name, err)
	}
	if u.ID != 0 && syscall.Setuid(0) == nil { //nolint:gosec // it has to fail
		return fmt.Errorf("user %s can become root again", u.Name)
	}
	return nil
}
