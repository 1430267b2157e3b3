// Package screen writes for people: aligned tables, colour where a terminal shows
// it, and a line that moves while something takes its time.
package screen

import (
	"io"
	"strings"
	"unicode"

	"golang.org/x/text/width"
)

// Table is rows of cells, aligned by what a terminal shows of them: colour codes and
// combining marks take no room, and East Asian wide characters take two columns.
type Table struct {
	Indent string
	rows   [][]string
}

// Row appends a row.
func (t *Table) Row(cells ...string) { t.rows = append(t.rows, cells) }

// Len is the number of rows, the heading included.
func (t *Table) Len() int { return len(t.rows) }

const gap = 3 // columns between cells

// WriteTo writes the rows, without spaces at their ends.
func (t *Table) WriteTo(w io.Writer) (int64, error) {
	var widths []int
	for _, row := range t.rows {
		for i, cell := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], Width(cell))
		}
	}
	var b strings.Builder
	for _, row := range t.rows {
		var line strings.Builder
		line.WriteString(t.Indent)
		for i, cell := range row {
			line.WriteString(cell)
			if i < len(row)-1 {
				line.WriteString(strings.Repeat(" ", widths[i]-Width(cell)+gap))
			}
		}
		b.WriteString(strings.TrimRight(line.String(), " "))
		b.WriteByte('\n')
	}
	n, err := io.WriteString(w, b.String())
	return int64(n), err
}

// Width is the number of terminal columns that s takes.
func Width(s string) int {
	n := 0
	escape := false
	for _, r := range s {
		switch {
		case escape:
			escape = r < '@' || r == '[' // ECMA-48: a control sequence ends with @ to ~
		case r == '\x1b':
			escape = true
		case unicode.In(r, unicode.Mn, unicode.Me, unicode.Cf, unicode.Cc):
		default:
			n++
			if k := width.LookupRune(r).Kind(); k == width.EastAsianWide || k == width.EastAsianFullwidth {
				n++
			}
		}
	}
	return n
}
