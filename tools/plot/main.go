// Command plot reads lines to draw, as JSON on standard input, and writes an SVG picture to standard output.
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"image/color"
	"os"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/plotutil"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

type picture struct {
	Title, X, Y string // the title and what the axes show, with units
	Series      []struct {
		Name   string
		Points [][2]float64
	}
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "plot:", err)
		os.Exit(1)
	}
}

func run() error {
	var p picture
	if err := json.NewDecoder(os.Stdin).Decode(&p); err != nil {
		return err
	}
	plot.DefaultFont = font.Font{Typeface: "Liberation", Variant: "Sans"}
	d, err := drawn(p)
	if err != nil {
		return err
	}
	canvas := vgsvg.New(17*vg.Centimeter, 11*vg.Centimeter)
	page := draw.New(canvas)
	page.FillPolygon(color.White, []vg.Point{ // pages may be dark, and the text is black
		page.Min, {X: page.Max.X, Y: page.Min.Y}, page.Max, {X: page.Min.X, Y: page.Max.Y},
	})
	margin := vg.Points(10)
	d.Draw(draw.Crop(page, margin, -margin, margin, -margin))
	var svg bytes.Buffer
	if _, err := canvas.WriteTo(&svg); err != nil {
		return err
	}
	// Arial has the widths of Liberation Sans, which few readers have.
	text := strings.ReplaceAll(svg.String(), "font-family:Liberation Sans;",
		"font-family:Liberation Sans,Arial,sans-serif;")
	_, err = os.Stdout.WriteString(text)
	return err
}

func drawn(p picture) (*plot.Plot, error) {
	d := plot.New()
	d.Title.Text, d.X.Label.Text, d.Y.Label.Text = p.Title, p.X, p.Y
	d.Title.Padding, d.X.Label.Padding, d.Y.Label.Padding = vg.Points(8), vg.Points(4), vg.Points(4)
	d.X.Min, d.Y.Min = 0, 0
	d.Legend.Top, d.Legend.Left, d.Legend.XOffs, d.Legend.YOffs = true, true, vg.Points(12), -vg.Points(6)
	d.Legend.Padding, d.Legend.ThumbnailWidth = vg.Points(3), vg.Points(28)
	grid := plotter.NewGrid()
	grid.Vertical.Color, grid.Horizontal.Color = color.Gray{Y: 215}, color.Gray{Y: 215}
	d.Add(grid)
	shapes := []draw.GlyphDrawer{draw.CircleGlyph{}, draw.BoxGlyph{}, draw.PyramidGlyph{}, draw.CrossGlyph{}}
	var ticks plot.ConstantTicks // where the first line has points
	for i, s := range p.Series {
		points := make(plotter.XYs, len(s.Points))
		for j, point := range s.Points {
			points[j] = plotter.XY{X: point[0], Y: point[1]}
			if i == 0 {
				ticks = append(ticks, plot.Tick{Value: point[0], Label: fmt.Sprint(point[0])})
			}
		}
		line, marks, err := plotter.NewLinePoints(points)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", s.Name, err)
		}
		// Colour, dashes and marks differ, so that none of them is needed to tell the lines apart.
		line.Color, line.Dashes, line.Width = plotutil.Color(i), plotutil.Dashes(i), vg.Points(1.5)
		marks.Color, marks.Shape, marks.Radius = plotutil.Color(i), shapes[i%len(shapes)], vg.Points(3)
		d.Add(line, marks)
		d.Legend.Add(s.Name, line, marks)
	}
	d.X.Tick.Marker = ticks
	return d, nil
}
