module {
  func.func @main(%arg0: tensor<4xf32>) -> (tensor<4xf32>, tensor<4xf32>) {
    %0 = stablehlo.add %arg0, %arg0 : tensor<4xf32>
    %1 = stablehlo.add %arg0, %arg0 : tensor<4xf32>
    return %arg0, %1 : tensor<4xf32>, tensor<4xf32>
  }
}
