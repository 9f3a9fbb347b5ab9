package node

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/revokd/revokd/journal"
	"github.com/revokd/revokd/revocation"
)

// ErrQuota: a writer may have no more live records; the [*QuotaError] says of what. Nothing was written; retry when some have expired.
var ErrQuota = errors.New("quota of live records")

// QuotaError says which quota refused a request. It matches [ErrQuota] and holds no values.
type QuotaError struct {
	Claims []string // names of those that the quota is for
	Grant  bool     // of the writer; else it is that of an issuer
	Limit  int
}

func (e *QuotaError) Error() string {
	return fmt.Sprintf("%s: at most %d for one {%s}", ErrQuota, e.Limit, strings.Join(e.Claims, ","))
}

func (e *QuotaError) Unwrap() error { return ErrQuota }

// Writer is who asks, if he is held to a share of the shapes and to quotas.
type Writer struct {
	Name string // whose share of the shapes it is
	// Records is how many live records those who write under one of Grants may have written here, for each of them; 0: no such limit.
	Records int
	Grants  []revocation.Match
}

func (w *Writer) definer() revocation.Definer {
	if w == nil {
		return revocation.Admin
	}
	return revocation.DefinerOf(w.Name)
}

// MaxAccounts is how many quotas are counted apart; beyond it those that are new share a count until there is room.
const MaxAccounts = 1024

// leastBucket is how exactly deadlines are told apart, in seconds, when they are near.
const leastBucket = 64

// quotas count records that writers have written here and that may be live. A record is in one bucket of the account of each quota that it falls under,
// and leaves it with its deadline, rounded up: so nothing is counted too early as gone, and an account has few buckets.
type quotas struct {
	mu       sync.Mutex
	accounts map[revocation.Fingerprint]*account
	gone     []charge // buckets on disk that count no more
}

// account counts for one issuer or grant, which is known by a keyed hash only. The zero fingerprint is that of the account that all share for whom there is no room.
type account struct {
	total   int
	buckets map[uint32]counted // by the second up to which they count
}

type counted struct {
	n      int
	onDisk bool // perhaps
}

// charge is one record in one account.
type charge struct {
	account revocation.Fingerprint
	until   uint32
	quota   QuotaError
}

func newQuotas() *quotas { return &quotas{accounts: make(map[revocation.Fingerprint]*account)} }

// bucket rounds a deadline up, by an eighth of what is left to it at most, or to a minute. A later deadline never gets an earlier bucket.
func bucket(deadline, now uint32) uint32 {
	width := uint32(leastBucket)
	for left := max(deadline, now) - now; width*2 <= left/8; {
		width *= 2
	}
	if up := (uint64(deadline) + uint64(width) - 1) / uint64(width) * uint64(width); up <= uint64(^uint32(0)) {
		return uint32(up)
	}
	return ^uint32(0)
}

// take charges all of wanted, or nothing: then the error is a *QuotaError. With rehearsal it charges nothing either way.
func (q *quotas) take(wanted []charge, now uint32, rehearsal bool) error {
	if len(wanted) == 0 {
		return nil
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	for i := range wanted {
		c := &wanted[i]
		a := q.at(c)
		if a.total >= c.quota.Limit {
			q.expire(c.account, a, now)
		}
		if a.total >= c.quota.Limit {
			q.undo(wanted[:i])
			return &c.quota
		}
		b := a.buckets[c.until]
		b.n++
		a.buckets[c.until] = b
		a.total++
	}
	if rehearsal {
		q.undo(wanted)
	}
	return nil
}

// at returns the account of a charge, which becomes that of all others if there is no room for one of its own.
func (q *quotas) at(c *charge) *account {
	if a := q.accounts[c.account]; a != nil {
		return a
	}
	if len(q.accounts) >= MaxAccounts {
		c.account = revocation.Fingerprint{}
		if a := q.accounts[c.account]; a != nil {
			return a
		}
	}
	a := &account{buckets: make(map[uint32]counted)}
	q.accounts[c.account] = a
	return a
}

// giveBack is for what was charged and not written.
func (q *quotas) giveBack(charges []charge) {
	if len(charges) == 0 {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.undo(charges)
}

func (q *quotas) undo(charges []charge) {
	for _, c := range charges {
		a := q.accounts[c.account]
		if a == nil {
			continue
		}
		b, ok := a.buckets[c.until]
		if !ok {
			continue // it is over
		}
		a.total--
		if b.n--; b.n > 0 {
			a.buckets[c.until] = b
			continue
		}
		if q.drop(c.account, a, c.until); len(a.buckets) == 0 {
			delete(q.accounts, c.account) // what came to nothing takes no place of an account
		}
	}
}

func (q *quotas) drop(f revocation.Fingerprint, a *account, until uint32) {
	if a.buckets[until].onDisk {
		q.gone = append(q.gone, charge{account: f, until: until})
	}
	delete(a.buckets, until)
}

// sweep frees what counts no more.
func (q *quotas) sweep(now uint32) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for f, a := range q.accounts {
		if q.expire(f, a, now); len(a.buckets) == 0 {
			delete(q.accounts, f)
		}
	}
}

func (q *quotas) expire(f revocation.Fingerprint, a *account, now uint32) {
	for until, b := range a.buckets {
		if until < now {
			a.total -= b.n
			q.drop(f, a, until)
		}
	}
}

// bring adds to a batch what its charges have made of their buckets. A bucket goes to disk with the records in it, so after a crash it is never too low;
// it may count records whose batch was not written.
func (q *quotas) bring(b *journal.Batch, charges []charge) {
	if len(charges) == 0 {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	type place struct {
		account revocation.Fingerprint
		until   uint32
	}
	done := make(map[place]bool)
	for _, c := range charges {
		p := place{c.account, c.until}
		a := q.accounts[c.account]
		if a == nil || done[p] {
			continue
		}
		if held, ok := a.buckets[c.until]; ok { // else it is over already
			held.onDisk = true
			a.buckets[c.until] = held
			b.Meta = append(b.Meta, journal.Meta{Key: c.key(), Value: binary.AppendUvarint(nil, uint64(held.n))})
			done[p] = true
		}
	}
}

// maxForgotten is how many buckets are removed from disk at once, so that a batch has room for them.
const maxForgotten = 10_000

// forget removes from disk the buckets that count no more.
func (q *quotas) forget(b *journal.Batch) {
	q.mu.Lock()
	defer q.mu.Unlock()
	later := q.gone[min(len(q.gone), maxForgotten):]
	for _, c := range q.gone[:len(q.gone)-len(later)] {
		if a := q.accounts[c.account]; a != nil {
			if _, again := a.buckets[c.until]; again { // it counts again, and may be on disk again
				later = append(later, c)
				continue
			}
		}
		b.Meta = append(b.Meta, journal.Meta{Key: c.key()})
	}
	q.gone = slices.Clone(later) // what a batch that fails was to remove stays until the next start
}

// key is that of a bucket in the journal's metadata: quota/ACCOUNT/UNTIL, both in hex.
func (c *charge) key() string {
	b := binary.BigEndian.AppendUint64(nil, c.account.Hi)
	b = binary.BigEndian.AppendUint64(b, c.account.Lo)
	return metaQuota + hex.EncodeToString(b) + "/" + strconv.FormatUint(uint64(c.until), 16)
}

// restore takes a bucket from the journal's metadata.
func (q *quotas) restore(key string, value []byte) error {
	id, until, _ := strings.Cut(strings.TrimPrefix(key, metaQuota), "/")
	f, err := hex.DecodeString(id)
	second, timeErr := strconv.ParseUint(until, 16, 32)
	n, size := binary.Uvarint(value)
	if err != nil || timeErr != nil || len(f) != 16 || size <= 0 || size != len(value) || n > 1<<40 {
		return errors.New("a quota in the journal: malformed")
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	c := charge{account: revocation.Fingerprint{Hi: binary.BigEndian.Uint64(f), Lo: binary.BigEndian.Uint64(f[8:])}}
	a := q.accounts[c.account] // however many there are: they were told apart before
	if a == nil {
		a = &account{buckets: make(map[uint32]counted)}
		q.accounts[c.account] = a
	}
	a.buckets[uint32(second)] = counted{int(n), true}
	a.total += int(n)
	return nil
}

// Classes under which accounts are hashed. They are on disk.
const (
	classIssuer = revocation.ClassDeny
	classGrant  = revocation.ClassBlock
)

// heldToQuota reports whether a writer is held to a quota at all.
func (n *Node) heldToQuota(by *Writer) bool {
	return by != nil && (n.cfg.IssuerRecords > 0 || by.Records > 0)
}

// charges returns what it costs a writer that records for a match are kept up to these buckets.
func (n *Node) charges(by *Writer, m revocation.Match, until []uint32) []charge {
	if len(until) == 0 {
		return nil
	}
	var list []charge
	quota := func(what revocation.Match, class revocation.Class, limit int) {
		// A hash of names and values under the cluster's first key, whichever records are made under now. The class tells an issuer from a grant of that issuer.
		names := what.Names()
		account := n.cfg.Key.Record(revocation.Revocation{Match: what, Shape: revocation.Shape{Names: names}, Class: class}).Fingerprint
		for _, u := range until {
			list = append(list, charge{account, u, QuotaError{names, class == classGrant, limit}})
		}
	}
	if iss, ok := m.Get("iss"); ok && n.cfg.IssuerRecords > 0 {
		if issuer, err := revocation.NewMatch(map[string]revocation.Value{"iss": iss}); err == nil {
			quota(issuer, classIssuer, n.cfg.IssuerRecords)
		}
	}
	for i, g := range by.Grants {
		twice := slices.ContainsFunc(by.Grants[:i], func(o revocation.Match) bool { return o.Contains(g) && g.Contains(o) })
		if by.Records > 0 && m.Contains(g) && !twice {
			quota(g, classGrant, by.Records)
		}
	}
	return list
}
