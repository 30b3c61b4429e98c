// Draw avatars with DiceBear: one job per line of the input, `{"style": …, "options": {…}}`; the output is the
// images' RGBA pixels one after the other, each of the size that the first argument gives.
import { createInterface } from 'node:readline'
import * as collection from '@dicebear/collection'
import { createAvatar } from '@dicebear/core'
import { Resvg } from '@resvg/resvg-js'

const settings = { fitTo: { mode: 'width', value: Number(process.argv[2]) }, font: { loadSystemFonts: false } }
for await (const line of createInterface({ input: process.stdin })) {
  const { style, options } = JSON.parse(line)
  const svg = createAvatar(collection[style], options).toString()
  const image = new Resvg(svg, settings).render()
  if (!process.stdout.write(image.pixels)) await new Promise((drained) => process.stdout.once('drain', drained))
}
