package api

import (
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/revokd/revokd/node"
	revokdv1 "github.com/revokd/revokd/proto/revokd/v1"
	"github.com/revokd/revokd/revocation"
)

func at(ms int64) *timestamppb.Timestamp { return timestamppb.New(time.UnixMilli(ms)) }

func verdictAnswer(v revocation.Verdict) *revokdv1.CheckResponse {
	m := &revokdv1.CheckResponse{Age: durationpb.New(v.Age)}
	switch v.Status {
	case revocation.Active:
		m.Verdict = revokdv1.Verdict_VERDICT_ACTIVE
	case revocation.Revoked:
		m.Verdict = revokdv1.Verdict_VERDICT_REVOKED
		m.Rule = ruleAnswer(v.Rule)
	default:
		m.Verdict = revokdv1.Verdict_VERDICT_UNKNOWN
		m.UnknownCause = v.Cause.String()
	}
	return m
}

func kindAnswer(c revocation.Class) revokdv1.RuleKind {
	switch c {
	case revocation.ClassDeny:
		return revokdv1.RuleKind_RULE_KIND_DENY
	case revocation.ClassIssuedBefore:
		return revokdv1.RuleKind_RULE_KIND_ISSUED_BEFORE
	case revocation.ClassBelow:
		return revokdv1.RuleKind_RULE_KIND_BELOW
	case revocation.ClassBlock:
		return revokdv1.RuleKind_RULE_KIND_BLOCK
	case revocation.ClassUnblock:
		return revokdv1.RuleKind_RULE_KIND_UNBLOCK
	case revocation.ClassKeep:
		return revokdv1.RuleKind_RULE_KIND_KEEP
	}
	return revokdv1.RuleKind_RULE_KIND_UNSPECIFIED
}

func ruleAnswer(r revocation.Rule) *revokdv1.Rule {
	m := &revokdv1.Rule{Kind: kindAnswer(r.Class), Reason: revokdv1.Reason(r.Reason), ExpiresAt: at(int64(r.ExpiresAt) * 1000)}
	if r.Shape != nil {
		m.Claims, m.Compared = r.Shape.Names, r.Shape.Compared
	}
	since, known := r.Since()
	switch {
	case r.Class == revocation.ClassBelow:
		m.Below = r.Value
	case r.Class == revocation.ClassIssuedBefore || r.Class == revocation.ClassKeep:
		m.IssuedBefore = at(since)
	case known:
		m.Since = at(since)
	}
	return m
}

func stepAnswer(s revocation.Step) *revokdv1.ExplainResponse_Step {
	m := &revokdv1.ExplainResponse_Step{Kind: kindAnswer(s.Class), Result: s.Result, ComparedClaim: s.ComparedClaim}
	if s.Result == "missing_claim" {
		m.Result = "skipped_missing_claim"
	}
	if s.Shape != nil {
		m.Claims, m.Compared = s.Shape.Names, s.Shape.Compared
	}
	if s.Found != nil {
		m.Found = ruleAnswer(*s.Found)
	}
	return m
}

func resultAnswer(r node.Result) *revokdv1.RevokeResponse {
	m := new(revokdv1.RevokeResponse)
	switch r.Outcome {
	case node.OutcomeRevoked:
		m.Outcome = revokdv1.Outcome_OUTCOME_REVOKED
	case node.OutcomeCovered:
		m.Outcome = revokdv1.Outcome_OUTCOME_COVERED
	case node.OutcomeAlreadyExpired:
		m.Outcome = revokdv1.Outcome_OUTCOME_ALREADY_EXPIRED
	case node.OutcomeUnblocked:
		m.Outcome = revokdv1.Outcome_OUTCOME_UNBLOCKED
	}
	if r.Rule.Class != 0 {
		m.Rule = ruleAnswer(r.Rule)
	}
	if r.UsableAfter != 0 {
		m.UsableAfter = at(r.UsableAfter)
	}
	return m
}

func rehearsalAnswer(r node.Rehearsal) *revokdv1.RehearseResponse {
	m := &revokdv1.RehearseResponse{
		Result: resultAnswer(r.Result), ShapeLive: r.ShapeLive, ShapeRecords: r.ShapeRecords, ShapeRecordsEstimated: r.ShapeRecordsEstimated,
		Checks: int64(r.Checks.Checks), WouldRefuse: int64(r.Checks.Refused), AlreadyRefused: int64(r.Checks.Already), Unclear: int64(r.Checks.Unclear),
	}
	if r.Checks.Checks > 0 {
		m.ChecksSince = at(r.Checks.Since)
	}
	return m
}

func durabilityAnswer(d node.Durability) revokdv1.Durability {
	if d == node.DurabilityMemory {
		return revokdv1.Durability_DURABILITY_MEMORY
	}
	return revokdv1.Durability_DURABILITY_DISK
}

func receiptAnswer(r node.Receipt) *revokdv1.Receipt {
	m := &revokdv1.Receipt{Durability: durabilityAnswer(r.Durability), Confirmed: r.Confirmed, Unconfirmed: r.Unconfirmed}
	switch r.Ack {
	case node.AckLocal:
		m.Ack = revokdv1.AckLevel_ACK_LEVEL_LOCAL
	case node.AckQuorum:
		m.Ack = revokdv1.AckLevel_ACK_LEVEL_QUORUM
	case node.AckAll:
		m.Ack = revokdv1.AckLevel_ACK_LEVEL_ALL
	}
	for _, p := range r.Positions {
		m.Positions = append(m.Positions, &revokdv1.Position{Origin: uint64(p.Origin), Number: p.Number})
	}
	return m
}

func replicationAnswer(st node.Status, peers []node.Peer) *revokdv1.ReplicationStatus {
	m := &revokdv1.ReplicationStatus{
		Voters: st.Voters, VotersNumber: st.VotersNumber, Votes: st.Votes, QuorumAge: ageAnswer(st.QuorumAge), AllAge: ageAnswer(st.AllAge),
		Behind: int64(st.Replication.Behind), Repaired: st.Replication.Repaired, Refused: st.Replication.Refused,
	}
	for _, p := range peers {
		if p.Client {
			m.Clients++
		} else {
			m.Peers++
		}
	}
	return m
}
