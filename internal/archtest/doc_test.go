// Package archtest keeps the architecture: it parses the files of the module and compares them with the tables in
// table_test.go, which are the picture of docs/DESIGN.md, section 4. It has tests only.
//
// A package that is not in the tables fails the tests. Whoever adds one, an import that the picture does not have,
// a library, or a place that reads the clock, adds its row with the reason; a row that nothing needs any
// more fails too.
package archtest
