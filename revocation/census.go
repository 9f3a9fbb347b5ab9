package revocation

import (
	"cmp"
	"slices"
)

// Census is what a look at every record finds.
type Census struct {
	Kinds        []KindCount // the most records first
	Keys         []KeyCount  // by the number of the key; those without records are not listed
	BlocksEnding int         // blocks in force that end until the instant that was asked for: nobody lifts them, so whoever made them should know before
	// FilterWrong is the share of absent keys, from 0 to 1, that the filter cannot exclude, so that the table has to be looked at.
	FilterWrong float64
}

// KindCount counts the live records of one shape and rule.
type KindCount struct {
	Shape   Shape
	Class   Class
	Records int
}

// KeyCount counts the live records that were made under one key.
type KeyCount struct {
	Number  uint8
	Records int
}

// censusBudget is how many records are looked at before others get their turn.
const censusBudget = 4096

// Census counts the records live at now; now and until are guarded time in Unix milliseconds. It looks at all of them, some 50 ns for each: for a timer, not for a request.
func (t *Table) Census(now, until int64) Census {
	type kind struct {
		shape ShapeID
		class Class
	}
	sec, last := unixSeconds(now), unixSeconds(until)
	var c Census
	counts, keys := map[kind]int{}, [maxKeyNumber + 1]int{}
	from, more := Fingerprint{}, true
	for more {
		from, more = t.Each(from, censusBudget, now, func(r Record, _ uint64) {
			counts[kind{r.Shape, r.Class}]++
			keys[r.KeyNumber()]++
			if r.Class == ClassBlock && r.ExpiresAt >= sec && r.ExpiresAt <= last {
				c.BlocksEnding++
			}
		})
	}
	for k, n := range counts {
		if s, ok := t.Shape(k.shape); ok {
			c.Kinds = append(c.Kinds, KindCount{s, k.class, n})
		}
	}
	for number, n := range keys {
		if n > 0 {
			c.Keys = append(c.Keys, KeyCount{uint8(number), n})
		}
	}
	slices.SortFunc(c.Kinds, func(a, b KindCount) int {
		return cmp.Or(b.Records-a.Records, slices.Compare(a.Shape.Names, b.Shape.Names), cmp.Compare(a.Shape.Compared, b.Shape.Compared), int(a.Class)-int(b.Class))
	})
	c.FilterWrong = t.store.FilterWrong()
	return c
}
