package approval

import "slices"

// Group is how many people must agree, and with what.
type Group struct {
	Name        string
	Members     []string // ids
	Quorum      int
	Kinds       []Kind // that count
	Attested    bool   // passkeys count only if a manufacturer has attested their authenticator
	DeviceBound bool   // passkeys count only if they cannot leave their authenticator
}

// Vote is an approval whose signature has verified, and what it was signed with.
type Vote struct {
	Person      string // id
	Kind        Kind
	Attested    bool
	DeviceBound bool
}

// Counts reports whether a vote counts for a group.
func (g *Group) Counts(v Vote) bool { return slices.Contains(g.Members, v.Person) && g.accepts(v) }

// accepts reports whether a vote of a member counts for a group.
func (g *Group) accepts(v Vote) bool {
	if !slices.Contains(g.Kinds, v.Kind) {
		return false
	}
	return v.Kind != Passkey || (v.Attested || !g.Attested) && (v.DeviceBound || !g.DeviceBound)
}

// Lacking returns how many people each group lacks, when each person counts for one group: the fewest in all. It finds
// a largest matching of people and the places of groups by augmenting paths.
func Lacking(groups []Group, votes []Vote) []int {
	member := map[string][]int{} // groups of those who have voted; groups may have many members
	for _, v := range votes {
		member[v.Person] = nil
	}
	for i, g := range groups {
		for _, person := range g.Members {
			if of, voted := member[person]; voted {
				member[person] = append(of, i)
			}
		}
	}
	able := map[string][]int{} // groups that a person's votes count for
	var people []string
	for _, v := range votes {
		for _, i := range member[v.Person] {
			if groups[i].accepts(v) && !slices.Contains(able[v.Person], i) {
				if able[v.Person] == nil {
					people = append(people, v.Person)
				}
				able[v.Person] = append(able[v.Person], i)
			}
		}
	}
	in := make([][]string, len(groups)) // people by the group that they count for
	var place func(person string, seen map[int]bool) bool
	place = func(person string, seen map[int]bool) bool {
		for _, g := range able[person] {
			if seen[g] {
				continue
			}
			seen[g] = true
			if len(in[g]) < groups[g].Quorum {
				in[g] = append(in[g], person)
				return true
			}
			for i, other := range in[g] {
				if place(other, seen) {
					in[g][i] = person
					return true
				}
			}
		}
		return false
	}
	for _, person := range people {
		place(person, map[int]bool{})
	}
	lacking := make([]int, len(groups))
	for i, g := range groups {
		lacking[i] = g.Quorum - len(in[i])
	}
	return lacking
}
