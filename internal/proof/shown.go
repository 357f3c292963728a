package proof

// shown returns what a bundle that has verified shows.
func (v *verification) shown() *Shown {
	p, f := &v.statement.Predicate, &v.found
	s := &Shown{Request: p.Request, Key: p.Key.Name, Log: v.log.Origin, Size: v.log.Size, Index: f.signed.index,
		Signed: f.signed.At(), Repository: p.Repository, Rule: f.intent.Rule, BreakGlass: f.request.Why != "",
		Reason: p.Reason}
	for _, d := range f.agreed {
		a := Approver{ID: d.Approver, Time: d.At()}
		if d.approval != nil {
			a = Approver{ID: d.Approver, Name: v.demand.Names[d.Approver], Kind: d.vote.Kind, Time: d.approval.Time,
				Reason: d.approval.Reason, Counts: v.counts(d)}
		}
		s.Approvers = append(s.Approvers, a)
	}
	for _, c := range v.log.cosigned {
		s.Witnesses = append(s.Witnesses, c.Witness)
	}
	return s
}
