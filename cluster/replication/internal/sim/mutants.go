package sim

// Mutants are the rules that can be left out, each by the name that [Options].Mutant takes, with what it does: when built with the tag faults, for most of them are
// in package replication. Those of the host, the disk and the store are the simulator's own. What the simulator does not come by is in a test of package replication.
var Mutants = map[string]string{
	// Copying
	"skip-record":      "one record in twenty is not merged",
	"raise-at-begin":   "the vector rises when a scan begins",
	"scan-vector-late": "a scan raises the vector to what its server held at the end",
	"scan-upper-bound": "a scan leaves out what is newer than its vector",
	"scan-max":         "parts of a scan raise the vector to the best of their servers",
	"floor-kept":       "the log is served over the hole that a scan has left",
	"no-pull":          "nobody asks for what he lacks",
	// Names and content
	"min-for-max":     "the lesser of two thresholds wins",
	"one-of-two-dots": "content that came of a join keeps one of the names",
	"reuse-epoch":     "a node that lost its disk numbers from 1 under its old name",
	"ignore-fence":    "a clone goes on under the name of the other",
	"fence-forgotten": "the next start believes the names that somebody else has used",
	"reuse-index":     "the index of an origin whose write failed is given to the next one",
	// Rogues
	"no-meter":  "a node may write as much as it likes",
	"no-bounds": "nobody looks at the times of records",
	// Durability
	"durable-early":         "records are called durable before they are on disk",
	"vector-not-journaled":  "what is covered is called durable, and the vector on disk does not have it",
	"lost-origin-whole":     "what a node that lost its disk copies of its own earlier records counts as all up to the last of them at the next start",
	"loose-not-kept":        "what only a join covers is not written to disk",
	"vector-before-records": "the vector is on disk before its records",
	"vector-over-refused":   "the vector on disk rises over what the disk has refused",
	"ack-applied":           "what a voter has in memory counts as acknowledged",
	"audit-level":           "sums are compared with who holds just the same only",
	"audit-horizon":         "sums are compared with who has the same horizon only",
	"no-audit":              "nobody compares sums",
	// Votes and views
	"silent-votes":         "a voter that lost its disk goes on voting",
	"incarnation-kept":     "a lost data directory is not noticed",
	"view-at-answer":       "a view is as old as the answer, not as the question",
	"view-without-holding": "a view counts before what it names is here",
}
