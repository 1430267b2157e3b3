package screen

import "strings"

// bars are the eighths of a line, from the least to the most.
var bars = []rune("▁▂▃▄▅▆▇█")

// Spark draws the last values as bars, at most width of them, the tallest being highest,
// or the largest value where that is more.
func Spark(values []float64, highest float64, width int) string {
	values = values[max(0, len(values)-width):]
	for _, v := range values {
		highest = max(highest, v)
	}
	var b strings.Builder
	for _, v := range values {
		level := 0
		if highest > 0 {
			level = min(len(bars)-1, max(0, int(v/highest*float64(len(bars)))))
		}
		b.WriteRune(bars[level])
	}
	return b.String()
}
