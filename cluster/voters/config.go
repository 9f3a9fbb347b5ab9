package voters

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Limits of a configuration; what is beyond them is refused wherever it comes from.
const (
	MaxVoters = 64
	MaxName   = 64 // bytes

	maxNumber = 1 << 62 // a successor always has a number
	maxLosses = 1 << 30
)

var (
	ErrName   = errors.New("voters: name")
	ErrList   = errors.New("voters: list")
	ErrChange = errors.New("voters: not one change")
)

// Incarnation is the random id of a data directory. A directory that was lost, or had to salvage, has a new one.
type Incarnation [16]byte

// Voter is one entry of a [Config].
type Voter struct {
	Name        string
	Incarnation Incarnation

	// Silent: this incarnation is recorded and decides on configurations, but its acknowledgements and its views do not
	// count, because it may lack what the incarnation before it acknowledged.
	Silent bool
}

func (v Voter) is(name string, inc Incarnation) bool { return v.Name == name && v.Incarnation == inc }

// Config is a numbered list of voters. It is immutable; the zero value is "no configuration yet" and nobody votes in it.
// Configurations are ordered by Losses, then Number.
type Config struct {
	// Losses counts the times that an operator went on without a quorum ([AcceptLoss]).
	Losses uint32
	Number uint64
	Voters []Voter // by name
}

// IsZero reports whether there is no configuration yet.
func (c Config) IsZero() bool { return c.Number == 0 }

// Compare orders configurations by age. Two that are equal here and differ in their hash can only come from two clusters, or from
// two operators who accepted the loss of each other.
func (c Config) Compare(d Config) int {
	return cmp.Or(cmp.Compare(c.Losses, d.Losses), cmp.Compare(c.Number, d.Number))
}

// Hash names number and list: acknowledgements and view ages of different hashes are never added up.
func (c Config) Hash() uint64 {
	sum := sha256.Sum256(appendConfig([]byte("revokd voters 1\x00"), c))
	return binary.BigEndian.Uint64(sum[:])
}

// Majority is the number of voters, W, that makes a quorum. Silent voters count in the list that it is the majority of.
func (c Config) Majority() int { return len(c.Voters)/2 + 1 }

// Contains reports whether this incarnation is in the list, silent or not.
func (c Config) Contains(name string, inc Incarnation) bool { return c.index(name, inc) >= 0 }

// Votes reports whether acknowledgements and views of this incarnation count.
func (c Config) Votes(name string, inc Incarnation) bool {
	i := c.index(name, inc)
	return i >= 0 && !c.Voters[i].Silent
}

// Quorum reports whether the voters that have confirmed are a majority. Only those that vote are asked for. It does not allocate.
func (c Config) Quorum(confirmed func(Voter) bool) bool {
	return !c.IsZero() && c.count(confirmed) >= c.Majority()
}

// All reports whether every voter has confirmed. It is false while one is silent: nobody knows what that one holds.
func (c Config) All(confirmed func(Voter) bool) bool {
	return !c.IsZero() && c.count(confirmed) == len(c.Voters)
}

func (c Config) count(confirmed func(Voter) bool) int {
	n := 0
	for _, v := range c.Voters {
		if !v.Silent && confirmed(v) {
			n++
		}
	}
	return n
}

func (c Config) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d", c.Number)
	if c.Losses > 0 {
		fmt.Fprintf(&b, " after %d accepted losses", c.Losses)
	}
	for i, v := range c.Voters {
		b.WriteString([]string{": ", ", "}[min(i, 1)] + v.Name)
		if v.Silent {
			b.WriteString(" (silent)")
		}
	}
	return b.String()
}

func (c Config) index(name string, inc Incarnation) int {
	i, ok := c.find(name)
	if !ok || c.Voters[i].Incarnation != inc {
		return -1
	}
	return i
}

func (c Config) find(name string) (int, bool) {
	return slices.BinarySearchFunc(c.Voters, name, func(v Voter, name string) int { return strings.Compare(v.Name, name) })
}

// successor is the configuration after c with this list.
func (c Config) successor(list []Voter) Config {
	slices.SortFunc(list, func(a, b Voter) int { return strings.Compare(a.Name, b.Name) })
	return Config{Losses: c.Losses, Number: c.Number + 1, Voters: list}
}

func (c Config) with(v Voter) Config {
	list := slices.Clone(c.Voters)
	if i, ok := c.find(v.Name); ok {
		list[i] = v
	} else {
		list = append(list, v)
	}
	return c.successor(list)
}

func (c Config) without(name string) Config {
	return c.successor(slices.DeleteFunc(slices.Clone(c.Voters), func(v Voter) bool { return v.Name == name }))
}

// check says what is wrong with the form of c.
func (c Config) check() error {
	if c.IsZero() {
		if len(c.Voters) != 0 || c.Losses != 0 {
			return fmt.Errorf("%w: voters without a number", ErrList)
		}
		return nil
	}
	if c.Number > maxNumber || c.Losses > maxLosses {
		return fmt.Errorf("%w: number beyond what a cluster can have reached", ErrList)
	}
	if len(c.Voters) == 0 || len(c.Voters) > MaxVoters {
		return fmt.Errorf("%w: %d voters, 1 to %d are possible", ErrList, len(c.Voters), MaxVoters)
	}
	for i, v := range c.Voters {
		if err := checkName(v.Name); err != nil {
			return err
		}
		if i > 0 && c.Voters[i-1].Name >= v.Name {
			return fmt.Errorf("%w: not in the order of distinct names", ErrList)
		}
	}
	return nil
}

func checkName(name string) error {
	if name == "" || len(name) > MaxName {
		return fmt.Errorf("%w: %d bytes, 1 to %d are possible", ErrName, len(name), MaxName)
	}
	return nil
}

type change int

const (
	changeBoot change = iota
	changeAdd
	changeRemove
	changeReplace // a new incarnation, silent
	changeVoice   // that incarnation votes again
)

// changeTo says by which single change next follows c.
func (c Config) changeTo(next Config) (change, error) {
	if err := next.check(); err != nil {
		return 0, err
	}
	if next.Losses != c.Losses || next.Number != c.Number+1 {
		return 0, fmt.Errorf("%w: number %d after %d", ErrChange, next.Number, c.Number)
	}
	if c.IsZero() {
		if slices.ContainsFunc(next.Voters, func(v Voter) bool { return v.Silent }) {
			return 0, fmt.Errorf("%w: the first list has a silent voter", ErrChange)
		}
		return changeBoot, nil
	}
	var added, removed, replaced, voiced, other int
	for _, v := range next.Voters {
		i, ok := c.find(v.Name)
		switch {
		case !ok && !v.Silent:
			added++
		case !ok:
			other++
		case c.Voters[i] == v:
		case c.Voters[i].Incarnation != v.Incarnation && v.Silent:
			replaced++
		case c.Voters[i].Incarnation == v.Incarnation && c.Voters[i].Silent:
			voiced++
		default:
			other++
		}
	}
	for _, v := range c.Voters {
		if _, ok := next.find(v.Name); !ok {
			removed++
		}
	}
	switch [5]int{added, removed, replaced, voiced, other} {
	case [5]int{1, 0, 0, 0, 0}:
		return changeAdd, nil
	case [5]int{0, 1, 0, 0, 0}:
		return changeRemove, nil
	case [5]int{0, 0, 1, 0, 0}:
		return changeReplace, nil
	case [5]int{0, 0, 0, 1, 0}:
		return changeVoice, nil
	}
	return 0, fmt.Errorf("%w: %d added, %d removed, %d incarnations, %d others", ErrChange, added, removed, replaced, voiced+other)
}
