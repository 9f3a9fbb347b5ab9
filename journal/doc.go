// Package journal is a log of fixed-size records that have deadlines, with a few keyed values beside them.
package journal
