package approval

import (
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// TestLacking compares Lacking with a search through all ways to count people for groups.
func TestLacking(t *testing.T) {
	t.Parallel()
	people := []string{"a", "b", "c", "d", "e"}
	kinds := []Kind{Key, SSH, Passkey}
	rapid.Check(t, func(t *rapid.T) {
		groups := make([]Group, rapid.IntRange(0, 4).Draw(t, "groups"))
		for i := range groups {
			groups[i] = Group{
				Members: rapid.SliceOfNDistinct(rapid.SampledFrom(people), 1, -1, rapid.ID).Draw(t, "members"),
				Quorum:  rapid.IntRange(1, 3).Draw(t, "quorum"),
				Kinds:   rapid.SliceOfNDistinct(rapid.SampledFrom(kinds), 1, -1, rapid.ID).Draw(t, "kinds"),
			}
			groups[i].Attested = rapid.Bool().Draw(t, "attested")
			groups[i].DeviceBound = rapid.Bool().Draw(t, "device-bound")
		}
		votes := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) Vote {
			return Vote{Person: rapid.SampledFrom(people).Draw(t, "person"), Kind: rapid.SampledFrom(kinds).Draw(t, "kind"),
				Attested: rapid.Bool().Draw(t, "attested"), DeviceBound: rapid.Bool().Draw(t, "device-bound")}
		}), 0, 7).Draw(t, "votes")

		got, total, needed := Lacking(groups, votes), 0, 0
		if len(got) != len(groups) {
			t.Fatalf("%d numbers for %d groups", len(got), len(groups))
		}
		for i, n := range got {
			if n < 0 || n > groups[i].Quorum {
				t.Fatalf("group %d lacks %d of %d", i, n, groups[i].Quorum)
			}
			total, needed = total+n, needed+groups[i].Quorum
		}
		if most := mostPlaced(groups, votes, people); total != needed-most {
			t.Fatalf("lacking %v, and %d of %d places can be taken", got, most, needed)
		}
	})
}

// mostPlaced returns how many people can count at most, each for one group that one of their votes counts for.
func mostPlaced(groups []Group, votes []Vote, people []string) int {
	if len(people) == 0 {
		return 0
	}
	most := mostPlaced(groups, votes, people[1:])
	for i, g := range groups {
		if g.Quorum > 0 && slices.ContainsFunc(votes, func(v Vote) bool { return v.Person == people[0] && g.Counts(v) }) {
			fewer := slices.Clone(groups)
			fewer[i].Quorum--
			most = max(most, 1+mostPlaced(fewer, votes, people[1:]))
		}
	}
	return most
}

// TestCounts checks what groups demand of passkeys, and that they demand it of nothing else.
func TestCounts(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		group Group
		vote  Vote
		want  bool
	}{
		{Group{}, Vote{Kind: Passkey}, true},
		{Group{Attested: true}, Vote{Kind: Passkey}, false},
		{Group{Attested: true}, Vote{Kind: Passkey, DeviceBound: true}, false},
		{Group{Attested: true}, Vote{Kind: Passkey, Attested: true}, true},
		{Group{DeviceBound: true}, Vote{Kind: Passkey, Attested: true}, false},
		{Group{DeviceBound: true}, Vote{Kind: Passkey, DeviceBound: true}, true},
		{Group{Attested: true, DeviceBound: true}, Vote{Kind: Passkey, Attested: true}, false},
		{Group{Attested: true, DeviceBound: true}, Vote{Kind: Passkey, Attested: true, DeviceBound: true}, true},
		{Group{Attested: true, DeviceBound: true}, Vote{Kind: SSH}, true},
		{Group{Attested: true, DeviceBound: true}, Vote{Kind: Key}, false}, // not among the kinds
	} {
		c.group.Members, c.group.Kinds, c.vote.Person = []string{alice}, []Kind{SSH, Passkey}, alice
		if got := c.group.Counts(c.vote); got != c.want {
			t.Errorf("%+v %+v: %v", c.group, c.vote, got)
		}
		c.vote.Person = bob
		if c.group.Counts(c.vote) {
			t.Errorf("%+v counts for one who is no member", c.vote)
		}
	}
}
