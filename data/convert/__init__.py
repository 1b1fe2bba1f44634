"""Pascal VOC xml, YOLO txt and the COCO layout that `data.path=` reads, each into each other.

Conventions, the same in both directions:

- Inside, a box is COCO's: ltwh in pixels of a picture that reaches from 0 to its width and height.
- VOC counts pixels from 1 and its corners are part of the box: left = xmin − 1, right = xmax, so width =
  xmax − xmin + 1 (the devkit's own rule). Written are whole pixels, xmin = round(left) + 1 and xmax =
  round(right): a side moves by half a pixel at most; a box thinner than a pixel becomes a pixel wide.
- YOLO's class cx cy w h are relative to the picture and written with all digits of a float64. COCO boxes are
  written to a millionth of a pixel, which takes off the noise of the division: COCO → YOLO → COCO returns the
  very numbers where they had no more than six decimals.
- VOC's `difficult` is COCO's `iscrowd`: to evaluation neither is a hit or a miss. YOLO has no such mark:
  crowd boxes are left out, and counted aloud.
- Categories have the ids 1 … K in the order of the classes file (data.yaml, classes.txt, obj.names); without
  one, VOC's are sorted by name, the devkit's order for PASCAL's twenty. Both splits have all of them. Writers
  of VOC and YOLO add the file: the order survives the way there and back.
- Boxes that hang over an edge are cut there and counted, as training cuts them.
- Pictures are linked or copied, never encoded anew; their headers say what size they have.
- Ids of images and categories do not survive, nor do polygons: `area` is the box's.

No library does this well (releases of 2026): globox 2.9 and labelformat 0.1 take VOC's corners for 0-based,
know neither splits nor `difficult`, and do not name what they stumble on; supervision 0.31 has the corners
right, but decodes every picture, orders categories by first sight and forgets `difficult`; datumaro 1.13
refuses this project's Pillow and brings pandas, Arrow and OpenCV. What libraries do well they do here:
defusedxml parses xml, msgspec YAML and JSON, Pillow headers.
"""
